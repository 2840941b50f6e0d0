package main

// What the emulation is steadiest with; measured by scripts/testbed-stress.sh.
const (
	tcgThreads    = "multi"
	kvmAMDOptions = ""
)
