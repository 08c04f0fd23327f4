"""What ``vxl evaluate`` measures: rendered archives, the needle test, published benchmarks."""
