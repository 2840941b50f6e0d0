package config

// State is where a machine is in its life: the machine's word, and what its API shows.
type State string

// The states, named as Firecracker's API does, which knows no Ended; a machine does not come back from it.
const (
	NotStarted State = "Not started"
	Running    State = "Running"
	Paused     State = "Paused"
	Ended      State = "Ended"
)
