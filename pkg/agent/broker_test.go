package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"net"
	"path/filepath"
	"testing"
	"time"
)

func newBroker(t *testing.T) (*StreamBroker, func() net.Conn) {
	t.Helper()
	return newBrokerWith(t, 200*time.Millisecond)
}

func newBrokerWith(t *testing.T, headerTimeout time.Duration) (*StreamBroker, func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := NewStreamBroker(l)
	b.headerTimeout = headerTimeout
	served := make(chan error, 1)
	go func() { served <- b.Serve() }()
	t.Cleanup(func() {
		b.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return b, func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

func expectClosed(t *testing.T, conn net.Conn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := conn.Read(make([]byte, 1)); n != 0 || errors.Is(err, context.DeadlineExceeded) || err == nil {
		t.Fatalf("read %d bytes, %v from a connection that should be closed", n, err)
	}
}

func TestBrokerDelivers(t *testing.T) {
	b, dial := newBroker(t)
	first, _ := b.Expect()
	second, _ := b.Expect()
	if first.ID() == second.ID() || first.ID() == 0 {
		t.Fatalf("ids %d and %d", first.ID(), second.ID())
	}
	guest := dial()
	if err := WriteHeader(guest, second.ID()); err != nil {
		t.Fatal(err)
	}
	io.WriteString(guest, "raw")
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	conn, err := second.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	got := make([]byte, 3)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "raw" {
		t.Fatalf("read %q, %v", got, err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := first.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a wait for what never comes: %v", err)
	}
}

func header(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

// Ids say nothing of those before and after them: half of their bits differ, more or less.
func TestBrokerIDsAreRandom(t *testing.T) {
	b, _ := newBroker(t)
	const n = 1000
	var last uint64
	differ, seen := 0, map[uint64]bool{}
	for range n {
		e, err := b.Expect()
		if err != nil {
			t.Fatal(err)
		}
		differ += bits.OnesCount64(e.ID() ^ last)
		last = e.ID()
		seen[last] = true
	}
	if average := float64(differ) / n; average < 30 || average > 34 || len(seen) != n || seen[0] {
		t.Errorf("%d ids of %d are different, from one to the next %.1f bits of 64", len(seen), n, average)
	}
}

func TestBrokerRefuses(t *testing.T) {
	b, dial := newBroker(t)
	e, _ := b.Expect()
	taken, _ := b.Expect()
	conn := dial()
	WriteHeader(conn, taken.ID())
	if _, err := taken.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	cancelled, _ := b.Expect()
	cancelled.Cancel()
	for name, header := range map[string][]byte{
		"unknown id":   header(e.ID() + 1),
		"id zero":      {0, 0, 0, 0, 0, 0, 0, 0},
		"id twice":     header(taken.ID()),
		"cancelled id": header(cancelled.ID()),
		"half an id":   {0, 0, 0},
		"nothing":      {},
	} {
		t.Run(name, func(t *testing.T) {
			conn := dial()
			conn.Write(header)
			expectClosed(t, conn)
		})
	}
	if len(e.conn) != 0 {
		t.Fatal("a refused connection was delivered")
	}
}

func TestBrokerBoundsUnnamed(t *testing.T) {
	_, dial := newBrokerWith(t, time.Minute)
	for range MaxUnnamed {
		dial()
	}
	expectClosed(t, dial())
}

func TestBrokerClose(t *testing.T) {
	b, dial := newBroker(t)
	e, _ := b.Expect()
	mute := dial()
	time.AfterFunc(50*time.Millisecond, func() { b.Close() })
	if _, err := e.Wait(context.Background()); !errors.Is(err, ErrBrokerClosed) {
		t.Fatalf("wait: %v", err)
	}
	expectClosed(t, mute)
	if _, err := b.Expect(); !errors.Is(err, ErrBrokerClosed) {
		t.Fatalf("expect: %v", err)
	}
}

func TestAcceptBound(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "c"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := Accept(ctx, l); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Accept: %v", err)
	}
}

// FuzzReadHeader: whatever arrives, the header takes eight bytes, never yields 0, and gives back what WriteHeader wrote.
func FuzzReadHeader(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 'x'})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, in []byte) {
		ours, theirs := net.Pipe()
		defer ours.Close()
		go func() { theirs.Write(in); theirs.Close() }()
		id, err := ReadHeader(ours, time.Minute)
		if err != nil {
			return
		}
		rest, _ := io.ReadAll(ours)
		var again bytes.Buffer
		if err := WriteHeader(&again, id); err != nil {
			t.Fatal(err)
		}
		if again.Write(rest); !bytes.Equal(again.Bytes(), in) {
			t.Fatalf("%x came back as %x", in, again.Bytes())
		}
	})
}
