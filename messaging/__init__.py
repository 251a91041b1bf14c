"""NATS for programs that run on Trio: requests, streams of messages, work queues, and news that nobody has to trust."""
