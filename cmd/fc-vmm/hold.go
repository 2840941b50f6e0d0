package main

import (
	"errors"
	"flag"
	"io"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
)

// runHold is `fc-vmm hold`: the process that stands for a container on the host. Its other arguments are for people who look
// at a process list.
func runHold(args []string) error {
	f := flag.NewFlagSet("fc-vmm hold", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	follow, control := f.Int("parent-fd", -1, ""), f.Int("control-fd", -1, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *follow < 0 || *control < 0 {
		return errors.New("want --parent-fd and --control-fd: the shim starts this")
	}
	return hold.Main(*follow, *control)
}
