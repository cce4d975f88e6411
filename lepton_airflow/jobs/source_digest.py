"""Which files a job read, as one digest: for receipts, which are checked where the files may not be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lepton_airflow.audit.canonical import digest

if TYPE_CHECKING:
    from lepton_airflow.jobs.roads import Source
    from lepton_airflow.jobs.runner import Job


def source_digest(job: Job, source: Source) -> str:
    """``sha256:<hex>`` of the list of files that make up a table: their names, sizes and times of modification.

    It tells one state of a table from another as far as those do; it is no digest of the content. A source without files (a
    database) is digested by its name, format and schema.
    """
    if source.frame is None:
        uris = sorted({group.uri for group in source.table.row_groups}) if source.table is not None else []
    else:
        uris = sorted(source.frame.inputFiles())
    if not uris:
        reference = source.reference
        return digest({"name": reference.name, "format": reference.format, "schema": source.schema.jsonValue()})
    java: Any = job.spark.sparkContext._jvm
    configuration = job.spark.sparkContext._jsc.hadoopConfiguration()
    files = []
    for uri in uris:
        path = java.org.apache.hadoop.fs.Path(java.java.net.URI(uri))
        status = path.getFileSystem(configuration).getFileStatus(path)
        files.append([path.getName(), int(status.getLen()), int(status.getModificationTime())])
    return digest(files)
