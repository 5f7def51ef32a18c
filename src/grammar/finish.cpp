// The end of building: calls find their rules, and what no text could go through, or could never
// get out of, is found.
#include <algorithm>
#include <span>
#include <utility>

#include "base/error.h"

#include "grammar/builder.h"

namespace tessera::grammar {

Program Builder::finish(Place start, std::string source) {
    for (Instruction& one : program_.code)
        if (one.op == Op::kCall) one.first = rules_[one.first];
    program_.start = start;
    program_.source = std::move(source);
    prune();
    refuse_left_recursion();
    return std::move(program_);
}

// Which places lead to an end in finitely many steps: found from the ends backwards, each looked at
// when something that it leads to was found. Then no other place is left within reach, so that no
// text runs into one.
void Builder::prune() {
    const size_t size = program_.code.size();
    std::vector<char> lives(size, 0);
    const auto any = [&](const auto& all, const Instruction& one, const auto& place_of) {
        return std::ranges::any_of(std::span(all).subspan(one.first, one.count),
                                   [&](const auto& each) { return lives[place_of(each)] != 0; });
    };
    const auto of_edge = [](const Edge& edge) { return edge.target; };
    const auto of_target = [](Place place) { return place; };
    const auto may_end = [&](const Instruction& one) {
        switch (one.op) {
            case Op::kReturn:
                return true;
            case Op::kEdges:
                return any(program_.edges, one, of_edge);
            case Op::kSplit:
                return any(program_.targets, one, of_target);
            case Op::kCall:
                return lives[one.first] && lives[one.next];
            case Op::kCount: {
                // An item leads back to its loop, which may end there; the first has to be one.
                const Instruction& loop = program_.code[one.next];
                const bool needs_item = loop.op == Op::kLoop && loop.low > 0;
                return lives[one.next] && (!needs_item || lives[loop.first]);
            }
            default:
                return lives[one.next] != 0;
        }
    };

    // (leads to, place), sorted.
    std::vector<std::pair<Place, Place>> arrows;
    std::vector<Place> found;
    for (Place i = 0; i < size; ++i) {
        const Instruction& one = program_.code[i];
        if (one.op == Op::kReturn) {
            lives[i] = 1;
            found.push_back(i);
        } else if (one.op == Op::kEdges) {
            for (uint32_t e = 0; e < one.count; ++e)
                arrows.emplace_back(program_.edges[one.first + e].target, i);
        } else if (one.op == Op::kSplit) {
            for (uint32_t t = 0; t < one.count; ++t)
                arrows.emplace_back(program_.targets[one.first + t], i);
        } else {
            arrows.emplace_back(one.next, i);
            if (one.op == Op::kCall) arrows.emplace_back(one.first, i);
            if (one.op == Op::kCount && program_.code[one.next].op == Op::kLoop)
                arrows.emplace_back(program_.code[one.next].first, i);
        }
    }
    std::ranges::sort(arrows);
    while (!found.empty()) {
        const Place here = found.back();
        found.pop_back();
        for (auto at = std::ranges::lower_bound(arrows, std::pair<Place, Place>(here, 0));
             at != arrows.end() && at->first == here; ++at) {
            if (lives[at->second] || !may_end(program_.code[at->second])) continue;
            lives[at->second] = 1;
            found.push_back(at->second);
        }
    }
    if (!lives[program_.start]) fail("no finite text satisfies the schema");
    const auto keep = [&](auto& all, uint32_t first, uint32_t& count, const auto& alive) {
        const auto begin = all.begin() + first;
        count = static_cast<uint32_t>(std::stable_partition(begin, begin + count, alive) - begin);
    };
    for (Instruction& one : program_.code) {
        if (one.op == Op::kEdges)
            keep(program_.edges, one.first, one.count,
                 [&](const Edge& edge) { return lives[edge.target] != 0; });
        if (one.op == Op::kSplit)
            keep(program_.targets, one.first, one.count,
                 [&](Place place) { return lives[place] != 0; });
        if (one.op == Op::kLoop && !lives[one.first]) one.high = 0;
    }
}

// A rule that can begin with a call of itself would push return addresses for ever. So no call may
// lead back to itself without taking a byte: the components of what takes none (Tarjan 1972,
// without recursion) are looked at for calls inside. No rule of a schema is empty, so what follows
// a call comes after a byte.
void Builder::refuse_left_recursion() const {
    constexpr uint32_t kNone = UINT32_MAX;
    const auto arrow = [&](const Instruction& one, uint32_t i) -> Place {
        if (one.op == Op::kSplit && i < one.count) return program_.targets[one.first + i];
        if (one.op == Op::kCall && i == 0) return one.first;
        if (one.op == Op::kCount && i == 0) return one.next;
        if (one.op == Op::kLoop && i == 0) return one.next;
        if (one.op == Op::kLoop && i == 1 && one.high > 0) return one.first;
        return kNone;
    };
    struct Visit {
        Place place;
        uint32_t arrow;
    };
    const size_t size = program_.code.size();
    std::vector<uint32_t> number(size, kNone), lowest(size, 0), component(size, kNone);
    std::vector<Visit> path;
    std::vector<Place> open;  // numbered, in no component yet
    uint32_t next_number = 0;
    const auto enter = [&](Place place) {
        number[place] = lowest[place] = next_number++;
        open.push_back(place);
        path.push_back({place, 0});
    };
    for (Place root = 0; root < size; ++root) {
        if (program_.code[root].op != Op::kCall || number[root] != kNone) continue;
        enter(root);
        while (!path.empty()) {
            const Place here = path.back().place;
            const Place to = arrow(program_.code[here], path.back().arrow++);
            if (to != kNone && number[to] == kNone) {
                enter(to);
            } else if (to != kNone) {
                if (component[to] == kNone) lowest[here] = std::min(lowest[here], number[to]);
            } else {
                path.pop_back();
                if (!path.empty())
                    lowest[path.back().place] = std::min(lowest[path.back().place], lowest[here]);
                if (lowest[here] != number[here]) continue;
                Place member;
                do {
                    member = open.back();
                    open.pop_back();
                    component[member] = here;
                } while (member != here);
            }
        }
    }
    for (Place place = 0; place < size; ++place) {
        const Instruction& one = program_.code[place];
        if (one.op == Op::kCall && component[place] == component[one.first])
            fail("the schema refers to itself with nothing in between");
    }
}

}  // namespace tessera::grammar
