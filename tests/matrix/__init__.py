"""Every kind of NAT against every other, in both roles: who connects, by which technique, and why the others do not.

    python -m tests.matrix [NAME ...]    writes docs/NAME-matrix.md; stopped, it goes on where it was

| file | topic |
|---|---|
| expected.py | the matrices there are, and which pairs of NATs each technique cannot connect: pure |
| play.py | all pairs in one laboratory, a round of twenty at a time |
| checkpoint.py | what has been measured so far, in a file |
| document.py | the Markdown that is made of it: pure |

tests/netns/test_udp_matrix.py and tests/netns/test_tcp_matrix.py assert on runs of their own.
"""
