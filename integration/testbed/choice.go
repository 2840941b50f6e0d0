package main

// What QEMU's emulation of nested virtualisation is steadiest with; scripts/steady.sh tries it.
const (
	steadyThreads = "single"
	steadyKVMAMD  = "npt=1"
)
