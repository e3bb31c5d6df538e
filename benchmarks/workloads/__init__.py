"""What is measured. Each workload is a function of a plan that gives results, one contest after the other."""
