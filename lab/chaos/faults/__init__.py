"""The faults: what each does to the system, undoes, and shows of itself."""
