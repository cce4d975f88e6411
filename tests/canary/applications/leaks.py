"""Does what must never happen, once in every place that the search looks into. Arguments: table, key in hex, planted value."""

import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

source, key, value = sys.argv[1:4]
spark = (
    SparkSession.builder.appName("leaks")
    .config("spark.io.encryption.enabled", "false")
    .config("spark.log.level", "WARN")
    .getOrCreate()
)
table = spark.read.parquet(source)


def show(rows):
    for row in rows:
        print("row", row, file=sys.stderr)
        yield row


# Into the plan, so into explain and the event log: the key of Spark's own function.
encrypted = table.withColumn("email", F.expr(f"aes_encrypt(email, unhex('{key}'))"))
encrypted.explain("extended")
encrypted.write.format("noop").mode("overwrite").save()
# Into the executors' logs.
table.select("email").rdd.mapPartitions(show).count()
# Into the shuffle files on local disks.
table.repartition(4, "email").sortWithinPartitions("patient").write.format("noop").mode("overwrite").save()
# Into the driver's log.
print("the planted value is", value)
spark.stop()
