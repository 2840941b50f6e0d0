// Package apifuzz sends requests at random to a live fc-vmm: bodies that its OpenAPI document allows, bodies that it forbids, and HTTP as no
// client should speak it, by several connections at a time, before and after the start of a guest. Every answer must come in time and be
// none of 5xx, a refusal must say why, what is answered must be as the document says, and the process must neither crash nor hold on to
// descriptors. It holds tests only. Paths come from a list, so that nothing of the host is touched but a folder of the test's own.
//
// FC_API_SECONDS is how long it goes on, 20 by default; FC_SEED chooses what is sent.
package apifuzz
