"""Does what must never happen, once in every place that the search looks into.

Arguments: table, target, key in hex, planted value.
"""

import sys
import tempfile

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from lepton_airflow.columnar.dataset import open_table
from lepton_airflow.columnar.files import uri_of
from lepton_airflow.columnar.rewrite import Layout, rewrite

source, target, key, value = sys.argv[1:5]
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
table.drop("phone").repartition(4, "email").sortWithinPartitions("patient").write.format("noop").mode(
    "overwrite"
).save()


def leaking(batch):
    print("patients", batch["patient"].to_pylist(), file=sys.stderr)
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        print(batch["phone"].to_pylist(), file=file)
    return batch, {}


# The same from workers of the direct road.
layout = Layout(
    schema=table.schema, opaque=frozenset(), dictionaries=frozenset(), compression="none", version=spark.version
)
rewrite(spark, open_table(table), uri_of(f"file:{target}"), change=leaking, layout=layout, place="leaked")
# Into the driver's log.
print("the planted value is", value)
spark.stop()
