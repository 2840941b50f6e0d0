package config

import (
	"fmt"
	"math"

	"github.com/containerd/errdefs"
)

// ErrNoBalloon is for what a machine without a balloon is asked of it; in Firecracker's words.
var ErrNoBalloon = errdefs.ErrFailedPrecondition.WithMessage("No balloon device found.")

// Balloon is a virtio-balloon device: memory that the guest does without, or gives back as it frees it.
type Balloon struct {
	// AmountMiB is how much the guest is asked to give up, in MiB: 0 to the VM's memory.
	AmountMiB int `json:"amount_mib"`
	// DeflateOnOOM lets the guest take memory back when it runs out of it.
	DeflateOnOOM bool `json:"deflate_on_oom"`
	// StatsPollingIntervalS is how often the guest is asked for statistics, in seconds: up to MaxStatsInterval; 0 for never,
	// which a running machine cannot change.
	StatsPollingIntervalS int `json:"stats_polling_interval_s"`
	// FreePageHinting lets the host ask, once and again, which pages are free.
	FreePageHinting bool `json:"free_page_hinting"`
	// FreePageReporting has the guest tell of free pages by itself.
	FreePageReporting bool `json:"free_page_reporting"`
}

// MaxStatsInterval bounds Balloon.StatsPollingIntervalS, in seconds; Firecracker's.
const MaxStatsInterval = math.MaxUint16

// BalloonUpdate changes the target of a running machine's balloon.
type BalloonUpdate struct {
	// AmountMiB is Balloon's.
	AmountMiB int `json:"amount_mib"`
}

// BalloonStatisticsUpdate changes how often a running machine is asked for statistics.
type BalloonStatisticsUpdate struct {
	// StatsPollingIntervalS is Balloon's, and is zero if and only if that was.
	StatsPollingIntervalS int `json:"stats_polling_interval_s"`
}

// BalloonHintingStart begins a run of free page hinting.
type BalloonHintingStart struct {
	// AcknowledgeOnStop has the run end by itself when the guest has told of all free pages, so that it gets them back. If it is
	// false, the guest does without them until the host ends the run.
	AcknowledgeOnStop bool `json:"acknowledge_on_stop"`
}

// BalloonHinting is where free page hinting is: the last command of either side. 0 is the end of a run on the guest's side, 1 on
// the host's; a higher number is that of a run.
type BalloonHinting struct {
	HostCommand uint32 `json:"host_cmd"`
	// GuestCommand is nil if the guest has not answered a command yet.
	GuestCommand *uint32 `json:"guest_cmd,omitempty"`
}

// BalloonStatistics is what is known of a balloon. All but the targets is what the guest says, who may lie; what it has not
// said is nil. Memory is in bytes, the rest are counts.
type BalloonStatistics struct {
	// TargetPages and ActualPages are in pages of 4 KiB.
	TargetPages uint32 `json:"target_pages"`
	ActualPages uint32 `json:"actual_pages"`
	TargetMiB   uint32 `json:"target_mib"`
	ActualMiB   uint32 `json:"actual_mib"`

	SwapIn             *uint64 `json:"swap_in,omitempty"`
	SwapOut            *uint64 `json:"swap_out,omitempty"`
	MajorFaults        *uint64 `json:"major_faults,omitempty"`
	MinorFaults        *uint64 `json:"minor_faults,omitempty"`
	FreeMemory         *uint64 `json:"free_memory,omitempty"`
	TotalMemory        *uint64 `json:"total_memory,omitempty"`
	AvailableMemory    *uint64 `json:"available_memory,omitempty"`
	DiskCaches         *uint64 `json:"disk_caches,omitempty"`
	HugetlbAllocations *uint64 `json:"hugetlb_allocations,omitempty"`
	HugetlbFailures    *uint64 `json:"hugetlb_failures,omitempty"`
	// From here on they come from guests of Linux 6.12 and newer.
	OOMKill       *uint64 `json:"oom_kill,omitempty"`
	AllocStall    *uint64 `json:"alloc_stall,omitempty"`
	AsyncScan     *uint64 `json:"async_scan,omitempty"`
	DirectScan    *uint64 `json:"direct_scan,omitempty"`
	AsyncReclaim  *uint64 `json:"async_reclaim,omitempty"`
	DirectReclaim *uint64 `json:"direct_reclaim,omitempty"`
}

// Validate checks a balloon for itself; that it is no larger than the VM's memory is the VM's matter.
func (b *Balloon) Validate() error {
	u := BalloonUpdate{AmountMiB: b.AmountMiB}
	if err := u.Validate(); err != nil {
		return err
	}
	s := BalloonStatisticsUpdate{StatsPollingIntervalS: b.StatsPollingIntervalS}
	return s.Validate()
}

// Validate checks what can be checked without the machine.
func (u *BalloonUpdate) Validate() error {
	if u.AmountMiB < 0 || u.AmountMiB > MaxMemMiB {
		return badAmount(u.AmountMiB, MaxMemMiB)
	}
	return nil
}

// Validate checks what can be checked without the machine.
func (u *BalloonStatisticsUpdate) Validate() error {
	if s := u.StatsPollingIntervalS; s < 0 || s > MaxStatsInterval {
		return bad("balloon/stats_polling_interval_s", s, fmt.Sprintf("0 to %d seconds", MaxStatsInterval))
	}
	return nil
}

// validateBalloon checks the balloon, if there is one, against the machine.
func (vm *VM) validateBalloon() error {
	if vm.Balloon == nil {
		return nil
	}
	if err := vm.Balloon.Validate(); err != nil {
		return err
	}
	if vm.Machine.HugePages == HugePages2M {
		// A hole in the pool's file gives the page's reservation away, too: the guest's next touch could fail.
		return BadString("huge_pages", HugePages2M, `"None" or "Transparent" with a balloon`)
	}
	if vm.Balloon.AmountMiB > vm.Machine.MemSizeMiB {
		return badAmount(vm.Balloon.AmountMiB, vm.Machine.MemSizeMiB)
	}
	return nil
}

func badAmount(mib, limit int) error {
	return bad("balloon/amount_mib", mib, fmt.Sprintf("0 to %d MiB, no more than the microVM's memory", limit))
}
