package main

import (
	"bytes"
	"fmt"
	"html"
	"slices"
	"strings"
)

// The picture's measures, in pixels, and its colours.
const (
	width      = 860
	labelWidth = 250
	barWidth   = 460
	barHeight  = 16
	rowGap     = 14
	ours       = "#0b6e4f"
	theirs     = "#b8b8b8"
)

// bar is what the picture shows of the figures.
type bar struct {
	what, unit, label string
	// more is for figures where more is better.
	more bool
}

// bars are the figures that the picture holds against the peers.
func bars() []bar {
	return []bar{
		{what: "Run", unit: "ms", label: "ctr run --rm busybox true"},
		{what: "Exec", unit: "ms", label: "ctr task exec true"},
		{what: "Boot", unit: "ms", label: "VM start to guest init"},
		{what: "Block/read-seq", unit: "MiB/s", label: "disk, sequential read", more: true},
		{what: "Block/read-4k-qd1", unit: "op/s", label: "disk, random 4 KiB reads", more: true},
		{what: "FS/read-seq", unit: "MiB/s", label: "virtio-fs, sequential read", more: true},
		{what: "FS/create", unit: "op/s", label: "virtio-fs, files created", more: true},
		{what: "Net/tcp-send", unit: "MiB/s", label: "network, TCP out of the guest", more: true},
		{what: "Vsock/send", unit: "MiB/s", label: "vsock, out of the guest", more: true},
		{what: "Stdout", unit: "MiB/s", label: "output through ctr", more: true},
	}
}

// phases are those of a start, in the order in which they pass, with what they are.
func phases() [][2]string {
	return [][2]string{
		{"check", "check"}, {"host", "host: network, cgroup, holder"}, {"spawn", "start two processes"}, {"mounts", "mounts"},
		{"stdio", "streams"}, {"start", "fc-vmm makes the VM"}, {"boot", "boot to the agent"}, {"create", "make the container"},
	}
}

// svg is a picture under construction.
type svg struct {
	bytes.Buffer
	y int
}

func (s *svg) text(x, y int, anchor, style, format string, args ...any) {
	fmt.Fprintf(s, "<text x=\"%d\" y=\"%d\" text-anchor=\"%s\" %s>%s</text>\n", x, y, anchor, style, html.EscapeString(fmt.Sprintf(format, args...)))
}

func (s *svg) rect(x, y int, w float64, h int, fill string) {
	fmt.Fprintf(s, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", x, y, max(w, 1), h, fill)
}

// chart draws the figures: bars beside the peers' and a start's phases. What was not measured is not in it.
func chart(r Result) []byte {
	s := &svg{y: 30}
	s.text(16, s.y, "start", "font-size=\"16\" font-weight=\"bold\"", "containerd-shim-fc-v2 and its peers")
	s.y += 18
	s.text(16, s.y, "start", "fill=\"#666\"", "%s", r.title())
	s.y += 16
	all := rows(r.Figures)
	for _, b := range bars() {
		if i := slices.IndexFunc(all, func(r row) bool { return r.what == b.what && r.unit == b.unit }); i >= 0 {
			s.bars(b, all[i])
		}
	}
	s.timeline(r.Figures)
	var out bytes.Buffer
	fmt.Fprintf(&out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n", width, s.y+10)
	fmt.Fprintf(&out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n%s</svg>\n", s.Bytes())
	return out.Bytes()
}

func (s *svg) bars(b bar, r row) {
	better := "less is better"
	if b.more {
		better = "more is better"
	}
	s.y += rowGap
	s.text(labelWidth-10, s.y+barHeight-4, "end", "", "%s", b.label)
	s.text(labelWidth-10, s.y+2*barHeight-4, "end", "fill=\"#999\" font-size=\"10\"", "%s, %s", b.unit, better)
	longest := 0.0
	for _, v := range r.values {
		longest = max(longest, v)
	}
	names := r.who()
	for _, n := range names {
		fill, v := theirs, r.values[n]
		if n == "fc" {
			fill = ours
		}
		w := 0.0
		if longest > 0 {
			w = barWidth * v / longest
		}
		s.rect(labelWidth, s.y, w, barHeight-2, fill)
		s.text(labelWidth+int(w)+6, s.y+barHeight-5, "start", "", "%s %s", n, number(v))
		s.y += barHeight
	}
	s.y += barHeight * max(0, 2-len(names))
}

// timeline draws the phases of a pod's start as steps, each where the one before it ends.
func (s *svg) timeline(figures []Figure) {
	const name = "Start/1cpu-128MiB/fc"
	var total float64
	var found [][2]string
	for _, p := range phases() {
		if v, ok := find(figures, name, "ms-"+p[0]); ok {
			total += v
			found = append(found, p)
		}
	}
	if total == 0 {
		return
	}
	s.y += 2 * rowGap
	s.text(16, s.y+10, "start", "font-weight=\"bold\"", "A pod's start, %s ms", number(total))
	s.y += 24
	at := 0.0
	for _, p := range found {
		v, _ := find(figures, name, "ms-"+p[0])
		s.text(labelWidth-10, s.y+barHeight-4, "end", "", "%s", p[1])
		x, w := labelWidth+int(barWidth*at/total), barWidth*v/total
		s.rect(x, s.y, w, barHeight-2, ours)
		s.text(x+int(w)+6, s.y+barHeight-5, "start", "", "%s", strings.TrimSuffix(number(v), ".0"))
		at += v
		s.y += barHeight
	}
}
