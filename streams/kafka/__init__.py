"""The Kafka room: the only place that imports aiokafka. Import its modules directly; see README.md."""
