package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

var sample = Result{Date: "2026-01-02", Commit: "abc", Clock: counted, Rounds: 3, Figures: []Figure{
	{"Run/runc", "ms", 344.2}, {"Run/fc", "ms", 610.4}, {"Start/1cpu-128MiB/fc", "ms-boot", 150}, {"Start/1cpu-128MiB/fc", "ms-check", 5},
	{"Size/shim/fc", "KiB", 14800}, {"queue.PopPush/go", "allocs/op", 0},
}}

func TestTable(t *testing.T) {
	var b strings.Builder
	printTable(&b, sample)
	for _, want := range []string{"2026-01-02, commit abc, counted", "610.4", "runc 344.2 (1.77 ×)", "go 0"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in the table:\n%s", want, b.String())
		}
	}
}

func TestChartIsXML(t *testing.T) {
	picture := string(chart(sample))
	for _, want := range []string{"fc 610.4", "runc 344.2", "boot to the agent", "A pod&#39;s start, 155 ms"} {
		if !strings.Contains(picture, want) {
			t.Errorf("no %q in the picture", want)
		}
	}
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestReplaceTable(t *testing.T) {
	got, err := replaceTable("a\n"+tableBegin+"old\n"+tableEnd+"b\n", "new\n")
	if want := "a\n" + tableBegin + "new\n" + tableEnd + "b\n"; err != nil || got != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	for _, text := range []string{"", tableBegin, tableEnd + tableBegin} {
		if _, err := replaceTable(text, "new\n"); err == nil {
			t.Errorf("no error for %q", text)
		}
	}
	if table := markdown(sample); !strings.Contains(table, "| Run | ms | 610.4 | runc 344.2 (1.77 ×) |") || !strings.Contains(table, "| Size/shim | KiB |") {
		t.Error(table)
	}
}

func TestParseOptions(t *testing.T) {
	for _, args := range [][]string{{"-clock", "sun"}, {"-rounds", "-1"}, {"-only", "("}, {"now"}, {"-what"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
	if o, err := parse([]string{"-check"}); err != nil || o.rounds != 5 {
		t.Errorf("%+v, %v", o, err)
	}
}
