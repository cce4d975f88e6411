"""The direct road: Parquet datasets read, written and published without rows crossing into the JVM."""
