"""Clusters, and what is remembered of prompts."""

from tests.mutations.model import Mutation

_ASSEMBLY = "lb_core/assembly.py"
_CLUSTER = "lb_core/cluster.py"
_FINDER = "lb_core/prefix/finder.py"
_FORGET = "lb_core/stores/lua/forget.lua"
_PREFIXES = "lb_core/prefix/redis.py"

_PARTS = "tests/core/test_runtime_parts.py::"
_REMEMBERED = "tests/redis/test_prefix_index.py::"

MUTATIONS = (
    Mutation(
        "a closed cluster holds its slots",
        _CLUSTER,
        "Cluster.close",
        "await self.store.close()",
        "pass",
        _PARTS + "test_the_end_gives_back_what_all_clusters_hold_also_those_that_left",
    ),
    Mutation(
        "a closed cluster leaves its notes on the way",
        _CLUSTER,
        "Cluster.close",
        "await finder.close()",
        "pass",
        _PARTS + "test_a_cluster_that_is_closed_finishes_what_it_notes_of_prompts",
    ),
    Mutation(
        "the index does not hear of the end",
        _FINDER,
        "PrefixFinder.close",
        "await self.index.close()",
        "pass",
        _PARTS + "test_a_cluster_that_is_closed_finishes_what_it_notes_of_prompts",
    ),
    Mutation(
        "an endpoint that left keeps its prompts",
        _CLUSTER,
        "Cluster.members",
        "self.forget(name)",
        "pass",
        _PARTS + "test_an_engine_that_was_restarted_or_left_has_no_prompt_any_more",
    ),
    Mutation(
        "no finder hears of an endpoint that is to be forgotten",
        _CLUSTER,
        "Cluster.forget",
        "finder.forget(endpoint)",
        "pass",
        _PARTS + "test_an_engine_that_was_restarted_or_left_has_no_prompt_any_more",
    ),
    Mutation(
        "an engine that was restarted keeps its prompts",
        _ASSEMBLY,
        "_engine_changed",
        "cluster.forget(endpoint)",
        "pass",
        _PARTS + "test_an_engine_that_was_restarted_or_left_has_no_prompt_any_more",
    ),
    Mutation(
        "the index does not hear of an endpoint that is to be forgotten",
        _FINDER,
        "PrefixFinder.forget",
        "self.index.forget(endpoint)",
        "pass",
        "tests/core/test_prefix_finder.py::test_a_restarted_engine_is_not_preferred_for_what_it_had",
    ),
    Mutation(
        "the index in memory forgets nobody",
        "lb_core/prefix/memory.py",
        "MemoryPrefixIndex.forget",
        "self._forgotten[endpoint] = _Forgotten(self._forgets, now + self._ttl_s)",
        "pass",
        "tests/core/test_prefix_finder.py::test_a_restarted_engine_is_not_preferred_for_what_it_had",
    ),
    Mutation(
        "the index in memory grows for ever",
        "lb_core/prefix/memory.py",
        "MemoryPrefixIndex.record",
        "self._entries.popitem(last=False)",
        "break",
        "tests/core/test_prefix_index.py::TestMemory::test_it_never_holds_more_than_it_may",
    ),
    Mutation(
        "the shared index forgets nobody",
        _PREFIXES,
        "RedisPrefixIndex._write_forgets",
        "await self._server.run(FORGET, (self._forgotten_at, self._forgets_at), name, 2 * self._ttl_s)",
        "pass",
        _REMEMBERED + "test_a_restart_that_one_balancer_saw_is_known_to_all",
    ),
    Mutation(
        "the script forgets nobody",
        _FORGET,
        "",
        "redis.call('ZADD', KEYS[1], text, ARGV[1])",
        "",
        _REMEMBERED + "test_a_restart_that_one_balancer_saw_is_known_to_all",
    ),
    Mutation(
        "nobody learns that an endpoint is forgotten",
        _FORGET,
        "",
        "redis.call('SET', KEYS[2], text)",
        "",
        _REMEMBERED + "test_a_restart_that_one_balancer_saw_is_known_to_all",
    ),
    Mutation(
        "forgotten endpoints are remembered for ever",
        _FORGET,
        "",
        "redis.call('ZREM', KEYS[1], old)",
        "",
        _REMEMBERED + "test_every_key_expires_and_names_that_were_forgotten_long_ago_are_dropped",
    ),
    Mutation(
        "what was forgotten never goes away by itself",
        _FORGET,
        "",
        "redis.call('EXPIRE', key, ARGV[2])",
        "",
        _REMEMBERED + "test_every_key_expires_and_names_that_were_forgotten_long_ago_are_dropped",
    ),
    Mutation(
        "the secret goes while it is used",
        _PREFIXES,
        "RedisPrefixIndex._write_entries",
        "if self._secret is not None and batch:",
        "if False:",
        _REMEMBERED + "test_the_secret_is_kept_while_it_is_used",
    ),
    Mutation(
        "the index in memory remembers for ever who was forgotten",
        "lb_core/prefix/memory.py",
        "MemoryPrefixIndex.forget",
        "self._forgotten.popitem(last=False)",
        "break",
        "tests/core/test_prefix_index.py::"
        "TestMemory::test_endpoints_that_are_gone_are_not_remembered_for_ever",
    ),
    Mutation(
        "an endpoint is forgotten again and again",
        _PREFIXES,
        "RedisPrefixIndex._write_forgets",
        "self._to_forget.discard(name)",
        "pass",
        _REMEMBERED + "test_a_restart_that_one_balancer_saw_is_known_to_all",
    ),
    Mutation(
        "notes that were written are written again",
        _PREFIXES,
        "RedisPrefixIndex._write_entries",
        "del self._waiting[name]",
        "pass",
        _REMEMBERED + "test_a_closed_index_has_written_its_notes_once",
    ),
    Mutation(
        "notes are kept while the server is away",
        _PREFIXES,
        "RedisPrefixIndex._write",
        "self._waiting.clear()\n        except Refused",
        "pass\n        except Refused",
        _REMEMBERED + "test_without_a_server_nothing_is_known_and_nobody_waits",
    ),
    Mutation(
        "notes that the server refused are kept",
        _PREFIXES,
        "RedisPrefixIndex._write",
        'self._note("recorded", error.code)\n            self._waiting.clear()',
        'self._note("recorded", error.code)',
        _REMEMBERED + "test_error_replies_are_one_line_in_the_log_each_way_and_no_exception",
    ),
    Mutation(
        "a closed index leaves its notes on the way",
        _PREFIXES,
        "RedisPrefixIndex.close",
        "await asyncio.wait([self._writer])",
        "pass",
        _REMEMBERED + "test_a_closed_index_has_written_its_notes_once",
    ),
    Mutation(
        "the shared index does not note who is to be forgotten",
        _PREFIXES,
        "RedisPrefixIndex.forget",
        "self._to_forget.add(endpoint)",
        "pass",
        _REMEMBERED + "test_a_restart_that_one_balancer_saw_is_known_to_all",
    ),
)
