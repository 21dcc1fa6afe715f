"""What follows files, names and pages in the background."""

from tests.mutations.model import Mutation

_DISCOVERY = "lb_core/discovery.py"
_FETCH = "lb_core/engines/fetch.py"
_SCRAPER = "lb_core/engines/scraper.py"
_DNS = "lb_core/dns.py"
_WATCH = "lb_core/watch.py"

_FOUND = "tests/core/test_discovery.py::"
_SCRAPED = "tests/core/test_scraper.py::"
_NAMES = "tests/core/test_dns.py::"
_WATCHED = "tests/core/test_watch.py::"

MUTATIONS = (
    # Discovery and watches.
    Mutation(
        "names are asked for after the end of a discovery",
        _DISCOVERY,
        "Discovery.stop",
        "name.stop()",
        "pass",
        _FOUND + "test_a_stopped_discovery_tells_nothing",
    ),
    Mutation(
        "the file is read after the end of a discovery",
        _DISCOVERY,
        "Discovery.stop",
        "await self._watch.stop()",
        "pass",
        _FOUND + "test_a_stopped_discovery_tells_nothing",
    ),
    Mutation(
        "a discovery that another one follows goes on telling",
        _DISCOVERY,
        "Discovery.retire",
        "self._retired = True",
        "pass",
        "tests/core/test_reload.py::test_an_answer_on_its_way_to_a_cluster_that_left_is_dropped",
    ),
    Mutation(
        "a name that left the file is asked for",
        _DISCOVERY,
        "Discovery._follow",
        "self._names.pop(host).stop()",
        "self._names.pop(host)",
        _FOUND + "test_dns_names_in_a_file_are_followed_as_long_as_they_are_in_it",
    ),
    Mutation(
        "a stopped watch of a name asks on",
        _DNS,
        "NameWatch.stop",
        "self._task.cancel()",
        "pass",
        _NAMES + "test_a_stopped_watch_asks_and_tells_no_more",
    ),
    Mutation(
        "a question is waited for after the end",
        _DNS,
        "NameWatch._run",
        "self._lookup.cancel()",
        "pass",
        _NAMES + "test_a_stopped_watch_asks_and_tells_no_more",
    ),
    Mutation(
        "a stopped watch of a file reads on",
        _WATCH,
        "FileWatch.stop",
        "self._task.cancel()",
        "pass",
        _WATCHED + "test_a_stopped_watch_reads_no_more",
    ),
    # The scraper.
    Mutation(
        "a stopped scraper visits on",
        _SCRAPER,
        "Scraper.stop",
        "self._stopping = True",
        "pass",
        _SCRAPED + "test_it_stops_at_once_while_pages_hang",
    ),
    Mutation(
        "nobody waits for the end of the scraper",
        _SCRAPER,
        "Scraper.stop",
        "self._thread.join(_JOIN_S)",
        "pass",
        _SCRAPED + "test_its_thread_has_ended_when_it_is_stopped",
    ),
    Mutation(
        "visits go on after the end",
        _SCRAPER,
        "Scraper._run",
        "rounds.close()",
        "pass",
        _SCRAPED + "test_it_stops_at_once_while_pages_hang",
    ),
    Mutation(
        "the threads of visits go on after the end",
        _SCRAPER,
        "_Rounds.close",
        "self._crew.close()",
        "pass",
        _SCRAPED + "test_it_stops_at_once_while_pages_hang",
    ),
    Mutation(
        "the threads of a crew never end",
        "lb_core/engines/crew.py",
        "Crew.close",
        "self._work.put(None)",
        "pass",
        _SCRAPED + "test_it_stops_at_once_while_pages_hang",
    ),
    Mutation(
        "a scraper that was stopped begins when there are threads again",
        _SCRAPER,
        "Scraper._start_again",
        "if not self._stopping:",
        "if True:",
        "tests/core/test_scraper_threads.py::test_a_scraper_that_is_stopped_does_not_begin_later",
    ),
    Mutation(
        "a page that left is visited",
        _SCRAPER,
        "_Rounds.replace",
        "before.values():\n            self._retire(visitor)",
        "before.values():\n            pass",
        _SCRAPED + "test_a_page_that_left_is_left",
    ),
    Mutation(
        "a page that changed is visited as before",
        _SCRAPER,
        "_Rounds.replace",
        "self._retire(visitor)\n                visitor",
        "pass\n                visitor",
        _SCRAPED + "test_a_page_that_moved_is_left",
    ),
    Mutation(
        "the connection to a page that left stays",
        _SCRAPER,
        "_Visitor.retire",
        "self._fetcher.close()",
        "pass",
        _SCRAPED + "test_a_page_that_left_is_left",
    ),
    Mutation(
        "a page that does not end is waited for",
        _SCRAPER,
        "_Visitor.hurry",
        "self._fetcher.abort()",
        "pass",
        _SCRAPED + "test_it_stops_at_once_while_pages_hang",
    ),
    Mutation(
        "an aborted visit waits on",
        _FETCH,
        "Fetcher.abort",
        "sock.shutdown(socket.SHUT_RDWR)",
        "pass",
        _SCRAPED + "test_it_stops_at_once_while_pages_hang",
    ),
    Mutation(
        "a closed connection to a page stays",
        _FETCH,
        "Fetcher.close",
        "self._session.close()",
        "pass",
        _SCRAPED + "test_a_page_that_left_is_left",
    ),
    Mutation(
        "a page that left is not told that it did",
        _SCRAPER,
        "_Rounds._retire",
        "visitor.retire()",
        "pass",
        _SCRAPED + "test_a_page_that_left_is_left",
    ),
    Mutation(
        "the connection to a page that failed stays",
        _SCRAPER,
        "_Visitor.visit",
        "if self.failed or self.retired:",
        "if False:",
        _SCRAPED + "test_the_connection_to_a_page_that_failed_is_closed",
    ),
)
