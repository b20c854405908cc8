"""What the benchmarks compare: each module here runs in a process of its own."""
