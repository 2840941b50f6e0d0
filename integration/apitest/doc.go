// Package apitest asks a live fc-vmm, before and after the start of a guest: each call of each endpoint, right and wrong, by a table and by
// what the OpenAPI document says; and requests at random, by several connections at a time: bodies that the document allows, bodies
// that it forbids, and HTTP as no client should speak it. Every answer must come in time and be none of 5xx, a refusal must say why, what
// is answered must be as the document says, and the process must neither crash nor hold on to descriptors. It holds tests only.
// Paths come from a list, so that nothing of the host is touched but a folder of the test's own.
//
// FC_API_SECONDS is how long requests are sent at random, 20 by default; FC_SEED chooses them.
package apitest
