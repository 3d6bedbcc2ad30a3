"""The state of the whole system: facts gathered once, and rules that judge them."""
