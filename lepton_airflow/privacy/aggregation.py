"""Bounded aggregation in Spark: whole numbers for each declared group, in which one unit counts no more than its bounds allow.

The plan: keep the rows of declared groups, turn each measure into fixed-point steps, aggregate by unit and group, cut each pair
down to Linf rows' worth, keep at most L0 groups of each unit, aggregate by group. Up to the last step every unit is treated
by itself, so adding or removing one changes nothing about the others; and all of it is integer arithmetic, so the result does
not depend on the order of rows, their partitions, or retried tasks.

Which groups of a unit are kept is decided by a hash of a salt, the unit and the group. Unlike ``rand()`` this gives a retried
task the same answer. The salt is drawn from the operating system once per release, so that a unit does not lose the
same groups in every release. Privacy does not rest on it: for every fixed salt the choice is a function of that unit's rows
alone, so the sensitivity holds for each salt and whoever knows it; drawing it at random only mixes mechanisms that each are
private.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lepton_airflow.errors import InvalidData, UnsupportedType
from lepton_airflow.privacy.fixed_point import FixedPoint
from lepton_airflow.privacy.groups import KeyValue, key_column, key_frame
from lepton_airflow.privacy.plan import BoundedAggregates, ReleasePlan

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

#: Columns of the plan; the source's own names can be anything, so they are replaced first.
UNIT, GROUP = "unit", "group"
#: Tink's prefix of a ciphertext: a version byte and the key's id.
KEY_PREFIX_BYTES = 5


def new_salt() -> int:
    """A fresh 63-bit salt for the choice of groups."""
    return secrets.randbits(63)


def check_columns(frame: DataFrame, *, unit: str, group_by: Sequence[str], plan: ReleasePlan, dataset: str) -> None:
    """Check the types of the columns that a release uses; reads the schema, no data.

    :raises UnsupportedType: a unit or group column that is no plain value, a measure that is not a number
    """
    from pyspark.sql import types as T

    groups = (T.StringType, T.ByteType, T.ShortType, T.IntegerType, T.LongType, T.BooleanType, T.DateType)
    units = (*groups, T.DecimalType, T.TimestampType, T.TimestampNTZType, T.BinaryType)
    wanted: list[tuple[str, tuple[type[T.DataType], ...], str]] = [
        (unit, units, "A privacy unit is text, a whole number, a decimal, a date, a time, or an encrypted column."),
        *((name, groups, "Groups are text, whole numbers, booleans or dates.") for name in group_by),
        *((measure.column, (T.NumericType,), "Measures are numbers.") for measure in plan.measures),
    ]
    for name, supported, remedy in wanted:
        kind = frame.schema[name].dataType
        # Under another collation than the binary one two declared keys, or two units, could be equal and yet differ.
        if not isinstance(kind, supported) or (isinstance(kind, T.StringType) and kind != T.StringType()):
            raise UnsupportedType(
                f"The column has type {kind.simpleString()}.", place=f"{dataset}.{name}", remedy=remedy
            )


def aggregate(
    frame: DataFrame,
    *,
    unit: str,
    group_by: Sequence[str],
    groups: Sequence[Sequence[KeyValue]],
    plan: ReleasePlan,
    salt: int,
    dataset: str,
    unit_is_encrypted: bool = False,
) -> BoundedAggregates:
    """Aggregate ``frame`` under the plan's contribution bounds.

    Rows whose unit is null are left out: they belong to nobody whom the bounds could protect. Rows of groups that were not
    declared are left out too. An empty frame gives zeros.

    :param groups: the declared keys, each with one value for every column of ``group_by``; results keep their order
    :param dataset: its name, for errors
    :param unit_is_encrypted: the unit column holds deterministic ciphertexts, one for each unit as long as one key made them
    :returns: exact integers, not private
    :raises SpecError: a declared key does not fit its column's type, or two keys are equal in it
    :raises InvalidData: the unit column was encrypted under several keys, so that one unit can have several ciphertexts
    """
    from pyspark.sql import functions as F

    bounds, measures = plan.bounds, range(len(plan.measures))
    keys = key_frame(frame, group_by=group_by, groups=groups, dataset=dataset)
    rows = frame.where(F.col(_quoted(unit)).isNotNull()).select(
        F.col(_quoted(unit)).alias(UNIT),
        *(F.col(_quoted(name)).alias(key_column(i)) for i, name in enumerate(group_by)),
        *(_steps(_quoted(plan.measures[m].column), plan.measures[m].grid).alias(f"v{m}") for m in measures),
    )
    if group_by:
        matches = [rows[key_column(i)].eqNullSafe(keys[key_column(i)]) for i in range(len(group_by))]
        rows = rows.join(F.broadcast(keys), on=matches, how="inner")
    else:
        rows = rows.withColumn(GROUP, F.lit(0))
    rows = rows.select(UNIT, GROUP, *(f"v{m}" for m in measures))

    choose = bounds.groups < plan.groups
    if choose:
        # All rows of a unit in one place: both aggregations below then run without another exchange.
        rows = rows.repartition(F.col(UNIT))
    pairs = rows.groupBy(UNIT, GROUP).agg(
        F.count(F.lit(1)).alias("n"),
        *(F.count(f"v{m}").alias(f"n{m}") for m in measures),
        *(F.sum(f"v{m}").alias(f"s{m}") for m in measures),
    )
    pairs = pairs.select(
        UNIT,
        GROUP,
        F.least(F.col("n"), F.lit(bounds.rows)).alias("rows"),
        *(F.least(F.col(f"n{m}"), F.lit(bounds.rows)).alias(f"values{m}") for m in measures),
        *(bounded_sum(F.col(f"s{m}"), F.col(f"n{m}"), bounds.rows).alias(f"sum{m}") for m in measures),
    )
    if choose:
        # The group's index breaks ties of the hash, or retries could choose differently.
        order = F.struct(F.xxhash64(F.lit(salt), F.col(UNIT), F.col(GROUP)), F.col(GROUP))
        counted = [name for name in pairs.columns if name != UNIT]
        kept = pairs.groupBy(UNIT).agg(F.min_by(F.struct(*counted), order, bounds.groups).alias("kept"))
        pairs = kept.select(UNIT, F.inline("kept"))
    totals = pairs.groupBy(GROUP).agg(
        F.count(F.lit(1)).alias("units"),
        F.sum("rows").alias("rows"),
        *(F.sum(f"values{m}").alias(f"values{m}") for m in measures),
        *(F.sum(f"sum{m}").alias(f"sum{m}") for m in measures),
        *_key_prefixes(unit_is_encrypted),
    )
    collected = {row[GROUP]: row.asDict() for row in totals.collect()}
    if unit_is_encrypted:
        _check_one_key(collected.values(), place=f"{dataset}.{unit}")

    def per_group(name: str) -> tuple[int, ...]:
        return tuple(int(collected[g][name] or 0) if g in collected else 0 for g in range(plan.groups))

    return BoundedAggregates(
        units=per_group("units"),
        rows=per_group("rows"),
        values=tuple(per_group(f"values{m}") for m in measures),
        sums=tuple(per_group(f"sum{m}") for m in measures),
    )


def bounded_sum(total: Column, count: Column, limit: int) -> Column:
    """``floor(total * limit / count)`` where a unit has more than ``limit`` values in a group, else ``total``; null is 0.

    So a unit beyond the limit contributes ``limit`` times its own mean: what sampling ``limit`` of its rows would give on
    average, without the sampling. As every value is within [lower, upper], the result is within [limit * lower, limit * upper].

    ``total * limit`` could overflow. With total = q * count + r and 0 <= r < count the same floor is
    q * limit + floor(r * limit / count), where abs(q) <= 2**26 and r * limit < 2**36 * 2**20.
    """
    from pyspark.sql import functions as F

    divisor = F.greatest(count, F.lit(1))
    remainder = F.pmod(total, divisor)
    # `div` truncates towards zero; both dividends here are exact multiples or not negative, so it equals the floor.
    quotient = _div(total - remainder, divisor)
    scaled = quotient * F.lit(limit) + _div(remainder * F.lit(limit), divisor)
    return F.coalesce(F.when(count > F.lit(limit), scaled).otherwise(total), F.lit(0).cast("bigint"))


def _div(dividend: Column, divisor: Column) -> Column:
    from pyspark.sql import functions as F

    return F.call_function("div", dividend, divisor)


def _steps(name: str, grid: FixedPoint) -> Column:
    """:meth:`FixedPoint.steps` as a Spark expression.

    The clipping is done on the number of steps: the bounds there are whole and below 2**26, so the result is within them
    whatever the division rounds to.
    """
    from pyspark.sql import functions as F

    value = F.col(name).cast("double")
    steps = value / F.lit(float(grid.granularity))
    clipped = F.greatest(F.lit(float(grid.lower)), F.least(F.lit(float(grid.upper)), steps))
    # `least` and `greatest` skip nulls, and would turn a missing value into a bound: so those are taken out first.
    return F.when(value.isNotNull() & ~F.isnan(value), F.rint(clipped).cast("bigint"))


def _key_prefixes(wanted: bool) -> list[Column]:
    from pyspark.sql import functions as F

    if not wanted:
        return []
    prefix = F.substring(F.col(UNIT), 1, KEY_PREFIX_BYTES)
    return [F.min(prefix).alias("first_key"), F.max(prefix).alias("last_key")]


def _check_one_key(totals: Any, *, place: str) -> None:
    prefixes = {bytes(row[name]) for row in totals for name in ("first_key", "last_key")}
    if len(prefixes) > 1:
        raise InvalidData(
            f"The privacy unit is encrypted under {len(prefixes)} or more keys, so one unit can pass for several.",
            place=place,
            remedy="Write the table anew under the keyset's primary key, then release.",
        )


def _quoted(name: str) -> str:
    """A column name as it is: without quoting, a dot in it would mean a field of a struct."""
    return "`" + name.replace("`", "``") + "`"
