"""Which chunks and segments a question is about, by the search index: each line of the question is looked up.

A question with options has several lines ("Which of these happens?" and four things that may). Read as one text, its
vector lies between all of them and near to none. Line by line each is what the search index knows: a description. An
option by itself may say less than it means ("red", asked of somebody's trousers), so it is looked up together with the
line that asks for it. What the lines find cannot be compared as it is, since a line that describes nothing is a little
similar to everything; so the similarities of each line are made standard, and a chunk counts as much as it stands out
for one of them. A question of one line keeps its similarities.

Segments of cameras that the question names come before all others, and so does the segment at a time that it names,
where it can mean one video only: of several, each has times of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from indexers.records import VectorHit
from pipeline.named_first import Named
from pipeline.reader import ArchiveReader, Resolved
from videoxl2.options import OPTION_MARK

CANDIDATE_GROUPS = 512
"""Frame groups whose similarity to a line ranks chunks and segments."""
MOST_LINES = 8


@dataclass(frozen=True)
class QuestionHits:
    """Scores of the chunks and segments that were found, and of each chunk the frame group that it was found by.

    ``named`` is what the question names; ``ranks`` are those of segments that come first for it.
    """

    chunks: dict[str, float]
    segments: dict[str, float]
    best_groups: dict[str, str]
    named: Named = field(default_factory=Named)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def best_segments(self, limit: int) -> list[str]:
        """So many segments, best first."""
        ranked = sorted(self.segments, key=lambda name: (-self.ranks.get(name, 0), -self.segments[name], name))
        return ranked[:limit]


def question_lines(question: str) -> list[str]:
    """What is looked up: the lines, options after the line that asks for them and without their letters.

    The whole question where there are too many of them.
    """
    lines: list[str] = []
    asked = ""
    for line in filter(None, map(str.strip, question.splitlines())):
        mark = OPTION_MARK.match(line)
        if mark is None:
            asked = line
        lines.append(line if mark is None else f"{asked} {line[mark.end() :]}".strip())
    return lines if 1 < len(lines) <= MOST_LINES else [question]


def question_hits(reader: ArchiveReader, question: str, about: Resolved) -> QuestionHits:
    """The chunks in the scope ``about`` that are nearest to the question, and as many of the cameras that it names."""
    vectors = reader.text_encoder.embed(question_lines(question))
    named = Named.in_question(question, {video.camera for video in about.videos if video.camera is not None})
    scopes = [about.scope, replace(about.scope, cameras=named.cameras)] if named.cameras else [about.scope]
    found = [
        [reader.store.search_vectors(vector_E, part, limit=CANDIDATE_GROUPS) for part in scopes] for vector_E in vectors
    ]
    hits = join_hits([_together(parts) for parts in found])
    ranks = {hit.segment_id: 1 for parts in found for hits in parts for hit in hits if hit.camera in named.cameras}
    if named.spans:
        meant = [video for video in about.videos if video.camera in named.cameras] or about.videos
        at_times = _segments_at(reader, named, [video.video_id for video in meant])
        ranks |= dict.fromkeys(at_times, 2)
        least = min(hits.segments.values(), default=-1.0)
        hits = replace(hits, segments={**dict.fromkeys(at_times, least), **hits.segments})
    return replace(hits, named=named, ranks=ranks)


def _together(parts: Sequence[Sequence[VectorHit]]) -> list[VectorHit]:
    """Hits of one line in several scopes, each once, best first."""
    found = {hit.group_id: hit for hits in parts for hit in hits}
    return sorted(found.values(), key=lambda hit: (-hit.score, hit.group_id))


def _segments_at(reader: ArchiveReader, named: Named, video_ids: Sequence[str]) -> list[str]:
    """The segments at the named times of the one video; none where there are several."""
    if len(video_ids) != 1:
        return []
    return [
        segment.segment_id
        for segment in reader.store.segments(video_ids[0])
        if named.is_at_time(segment.start_s, segment.end_s)
    ]


def join_hits(hits_by_line: Sequence[Sequence[VectorHit]]) -> QuestionHits:
    """What the lines found, each best first, as one."""
    found = [_best_of_chunks(hits) for hits in hits_by_line]
    segment_of = {hit.chunk_id: hit.segment_id for hits in hits_by_line for hit in hits}
    if len(found) == 1:
        scores = [{name: hit.score for name, hit in found[0].items()}]
    else:
        scores = [_standard(best, list(segment_of)) for best in found]
    chunks = {name: max(scored[name] for scored in scores) for name in segment_of}
    segments: dict[str, float] = {}
    best_groups: dict[str, str] = {}
    for name, segment in segment_of.items():
        segments[segment] = max(segments.get(segment, -math.inf), chunks[name])
        line = max((line for line, best in enumerate(found) if name in best), key=lambda line: scores[line][name])
        best_groups[name] = found[line][name].group_id
    return QuestionHits(chunks, segments, best_groups)


def _best_of_chunks(hits: Sequence[VectorHit]) -> dict[str, VectorHit]:
    """The best hit of each chunk; hits come best first."""
    best: dict[str, VectorHit] = {}
    for hit in hits:
        best.setdefault(hit.chunk_id, hit)
    return best


def _standard(best: dict[str, VectorHit], chunk_ids: Sequence[str]) -> dict[str, float]:
    """Standard scores of all chunks for one line; one that it did not find is as similar as the least that it did."""
    from videoxl2.relevance import standard_scores

    least = min((hit.score for hit in best.values()), default=0.0)
    similarities = [best[name].score if name in best else least for name in chunk_ids]
    return dict(zip(chunk_ids, standard_scores(similarities), strict=True))
