"""Runs the sites: python -m tests.sites [--only NAME...] [--keep] [--list] [--page]"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed

from tests.sites import environments, report
from tests.sites.catalogue import SITES
from tests.sites.run import Row, run
from tests.sites.servers import Servers
from tools import debian
from tools import servers as given


def main() -> int:
    parser = argparse.ArgumentParser(prog="make sites", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="TEXT", default=[], help="sites whose name holds one of these")
    parser.add_argument("--keep", action="store_true", help="leave the projects and their logs in var/sites/work")
    parser.add_argument("--at-once", type=int, default=2, help="how many sites run at the same time")
    parser.add_argument("--list", action="store_true", help="print the sites and run none")
    parser.add_argument("--page", action="store_true", help="write the last run of each site into docs/sites.md")
    options = parser.parse_args()
    chosen = [site for site in SITES if not options.only or any(text in site.name for text in options.only)]
    if options.list:
        print("\n".join(f"{site.name:<28} {site.varies}" for site in chosen))
        return 0
    if options.page:
        report.write_page()
        return 0
    if not debian.ensure():
        print(debian.help_text(), file=sys.stderr)
    rows: list[Row] = []
    with given.ensured() as urls:
        try:
            with (
                Servers(urls["DATABASE_URL"], urls["BROKER_URL"]) as servers,
                ThreadPoolExecutor(options.at_once) as pool,
            ):
                running = [pool.submit(run, site, servers, keep=options.keep) for site in chosen]
                try:
                    for done in as_completed(running):
                        rows.append(told(done.result()))
                except KeyboardInterrupt:
                    print("interrupted: the sites that have begun go on to their end", flush=True)
                    pool.shutdown(cancel_futures=True)
                    rows += [done.result() for done in running if not done.cancelled() and done.result() not in rows]
        finally:
            environments.forget_wheel()
    order = [site.name for site in chosen]
    rows.sort(key=lambda row: order.index(row.site))
    report.save(rows, [site.name for site in SITES])
    print("\n" + report.table(rows))
    return 0 if all(row.clean for row in rows) else 1


def told(row: Row) -> Row:
    """Print what came of a site that has just ended."""
    print(f"{row.site}: {row.verdict} ({row.seconds:g} s)", flush=True)
    for line in row.evidence if not row.clean else ():
        print("    " + line.replace("\n", "\n    "), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
