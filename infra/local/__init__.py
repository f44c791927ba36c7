"""The local launcher: Apache Kafka and a small language model as children of one process, from Python wheels alone."""
