"""Fakes that users' own tests can use too: fake QEMU, fake agent, simulated guest."""
