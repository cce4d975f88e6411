"""Decrypts, shuffles and sorts by decrypted values, protects again and explains itself: all that Spark may spill or show."""

import sys

from lepton_airflow.encryption.dataframe import protect, reveal
from lepton_airflow.encryption.protection import Protection
from lepton_airflow.jobs.session import start_session
from lepton_airflow.keys.reference import KeysetReference

keyring, identity_file, source, target = sys.argv[1:5]
spark = start_session("shuffle")
table = reveal(
    spark.read.parquet(source), columns=["email", "card", "patient"], keyring=keyring, identity_file=identity_file
)
shuffled = table.repartition(4, "email").sortWithinPartitions("patient")
protected = protect(
    shuffled,
    dataset="clinic.sorted",
    protections={"email": Protection(), "card": Protection(), "patient": Protection(cipher="AES256_SIV")},
    keysets={
        cipher: KeysetReference(keyring=keyring, name="clinic", cipher=cipher, identity_file=identity_file)
        for cipher in ("AES256_GCM", "AES256_SIV")
    },
)
protected.explain("extended")
protected.write.parquet(target)
spark.stop()
