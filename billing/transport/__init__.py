"""What happened: the usage event, the outbox it waits in, the publisher, the node's journal."""
