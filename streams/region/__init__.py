"""The region room: embedded Kafka, MirrorMaker 2 and the supervisor that keeps a whole system running."""
