package prometheus

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// labelOf is what a device's id is called.
func labelOf(group string) string {
	switch group {
	case "block", "vhost_user_block":
		return "drive"
	case "net":
		return "iface"
	}
	return "filesystem"
}

// text is the table in Prometheus' text format: counters since the VM's start, with the suffix _total, and gauges. Groups that are all
// zero, as those of devices that the VM has not, are left out.
func (t *table) text() []byte {
	b := new(bytes.Buffer)
	busy := make(map[string]bool)
	for s, v := range t.values {
		if v != 0 {
			busy[group(s.name)] = true
		}
	}
	all := slices.SortedFunc(maps.Keys(t.values), func(x, y series) int {
		return cmp.Or(cmp.Compare(x.name, y.name), cmp.Compare(x.device, y.device))
	})
	last := ""
	for _, s := range all {
		if !busy[group(s.name)] {
			continue
		}
		name, kind := "fc_"+strings.ReplaceAll(s.name, ".", "_"), "gauge"
		if t.kinds[s.name] == metrics.Delta {
			name, kind = name+"_total", "counter"
		}
		if s.name != last {
			fmt.Fprintf(b, "# HELP %s Firecracker's metric %s.\n# TYPE %s %s\n", name, s.name, name, kind)
			last = s.name
		}
		labels := t.labels
		if s.device != "" {
			labels += "," + labelOf(group(s.name)) + "=" + quote(s.device)
		}
		fmt.Fprintf(b, "%s{%s} %d\n", name, labels, t.values[s])
	}
	fmt.Fprintf(b, "# HELP fc_updated_seconds When the VM's metrics were written, since 1970.\n# TYPE fc_updated_seconds gauge\nfc_updated_seconds{%s} %d.%03d\n",
		t.labels, t.ms/1000, t.ms%1000)
	return b.Bytes()
}

func group(name string) string {
	g, _, _ := strings.Cut(name, ".")
	return g
}

// quote is a label's value, in which three characters need an escape.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}

// number takes whole numbers only.
func number(v any) (uint64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	u, err := strconv.ParseUint(n.String(), 10, 64)
	return u, err == nil
}
