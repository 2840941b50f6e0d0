package setup

// bootTimerAddr is where Firecracker's boot timer is.
const bootTimerAddr = 0xc0000000
