"""Evidence that the log is as it was written: seals, verification, proofs."""
