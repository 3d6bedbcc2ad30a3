"""The way of one task: admit it, settle it or end its hold, with a way out for each server away."""
