package config

import (
	"encoding/json"
	"reflect"
	"testing"
)

// Every pointer and slice that VM ever gets must be copied, so the test finds them by itself.
func TestCloneSharesNothing(t *testing.T) {
	vm := valid()
	before, err := json.Marshal(vm)
	if err != nil {
		t.Fatal(err)
	}
	c := vm.Clone()
	if !reflect.DeepEqual(c, vm) {
		t.Fatalf("got %+v, want %+v", c, vm)
	}
	scramble(t, "VM", reflect.ValueOf(&c).Elem())
	if after, err := json.Marshal(vm); err != nil || string(after) != string(before) {
		t.Errorf("a change of the clone made %s of %s, %v", after, before, err)
	}
	var none VM
	if c := none.Clone(); !reflect.DeepEqual(c, none) {
		t.Errorf("of nothing it makes %+v", c)
	}
}

// scramble changes all that can be reached from v, in place.
func scramble(t *testing.T, name string, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			t.Fatalf("%s is nil: valid() should have it, for this test", name)
		}
		scramble(t, name, v.Elem())
	case reflect.Slice:
		if v.Len() == 0 {
			t.Fatalf("%s is empty: valid() should have it, for this test", name)
		}
		for i := range v.Len() {
			scramble(t, name, v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			scramble(t, name+"."+v.Type().Field(i).Name, v.Field(i))
		}
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.String:
		v.SetString(v.String() + "!")
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(v.Uint() + 1)
	case reflect.Int, reflect.Int64:
		v.SetInt(v.Int() + 1)
	default:
		t.Fatalf("%s: kind %s is new to this test", name, v.Kind())
	}
}
