"""What is sold: SKUs, their prices over time and their policies."""
