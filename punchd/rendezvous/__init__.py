"""The rendezvous server: who is where, and a side channel between those who want to meet."""
