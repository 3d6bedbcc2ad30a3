"""What puts the system on trial: demo, benchmarks, chaos, scale. Not in the wheel."""
