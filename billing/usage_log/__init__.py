"""The fulfillment log: consumer, writer, partitions, rollups, receipts, dead letters."""
