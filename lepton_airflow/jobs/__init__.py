"""One module per Spark application: a Spec and a run(). What they do lives in the engine packages."""
