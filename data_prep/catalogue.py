"""Items: which of them are one, and the title by which a prompt names each.

The full title is the identity: items that share it become one. The short title, without its series
mark and cut, is used where it stays different from every other's; else the cut one with its mark;
else the full one.
"""

from .store import Store

_LEVELS = ("short", "cut", "title")


def join_items(store: Store) -> dict[str, int]:
    """Fill heads(item_id, title, item) and item_numbers(item_id, item); counts for meta.json.

    Of an id that is there twice the first line counts; items of one full title become the smallest
    of their ids.
    """
    run, fetch_row = store.connection.execute, store.fetch_row
    run("""CREATE TABLE titles AS SELECT item_id, arg_min(title, line) AS title,
        arg_min(struct_pack(brief := brief), line).brief AS brief, min(line) AS line
        FROM items GROUP BY 1""")
    accepted, distinct = fetch_row(
        "SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM titles)"
    )
    if accepted > distinct:
        row = fetch_row("""SELECT min(items.line), arg_min(item_id, items.line)
            FROM items JOIN titles USING (item_id) WHERE items.line > titles.line""")
        store.reject("items", "repeated item", accepted - distinct, *row)
    run("""CREATE TABLE merged AS SELECT item_id, title, brief,
        min(item_id) OVER (PARTITION BY title) AS head FROM titles""")
    merged = fetch_row("SELECT count(*) FROM merged WHERE head <> item_id")[0]
    run("""CREATE TABLE prompts AS SELECT item_id, title, 0 AS level, NULL::VARCHAR AS cut,
        short_title(coalesce(brief, title)) AS short FROM merged WHERE head = item_id""")
    _part_titles(store)
    run("""CREATE TABLE heads AS SELECT item_id, row_number() OVER (ORDER BY item_id) AS item,
        CASE level WHEN 0 THEN short WHEN 1 THEN cut ELSE title END AS title FROM prompts""")
    run("""CREATE TABLE item_numbers AS SELECT merged.item_id, heads.item FROM merged
        JOIN heads ON heads.item_id = merged.head""")
    with_series, uncut = fetch_row(
        "SELECT count(*) FILTER (WHERE level = 1 AND cut <> short), "
        "count(*) FILTER (WHERE level = 2 AND title <> short) FROM prompts"
    )
    return {
        "accepted": distinct,
        "merged_by_title": merged,
        "with_series": with_series,
        "uncut": uncut,
    }


def _part_titles(store: Store) -> None:
    """Raise the level of all items that share a title, until none do or all are at the last."""
    title = "CASE level WHEN 0 THEN short WHEN 1 THEN cut ELSE title END"
    while True:
        shared = store.connection.execute(f"""UPDATE prompts SET level = level + 1
            WHERE level < {len(_LEVELS) - 1} AND ({title} = '' OR {title} IN (
                SELECT {title} FROM prompts GROUP BY 1 HAVING count(*) > 1))""").fetchone()
        if not shared or not shared[0]:
            return
        store.connection.execute(
            "UPDATE prompts SET cut = cut_title(title) WHERE level = 1 AND cut IS NULL"
        )
