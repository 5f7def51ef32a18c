#include "answer.h"

#include "text/stop.h"

#include "interrupt.h"

namespace tessera {

std::string_view ended_text(Ended ended) {
    switch (ended) {
        case Ended::by_model:
            return "the model ended it";
        case Ended::at_stop:
            return "ended at a stop string";
        case Ended::at_limit:
            return "ended at --max-tokens";
        case Ended::at_context:
            return "ended: the context is full";
        case Ended::by_interrupt:
            return "interrupted";
    }
    return "";
}

Answer stream_answer(const Model& model, Session& session, const AnswerLimits& limits,
                     const std::function<void(std::string_view)>& write) {
    Detokenizer detokenizer = model.detokenizer(limits.specials);
    StopFinder stops(limits.stops);
    Answer answer{Ended::at_limit, {}};
    while (answer.tokens.size() < limits.tokens_max) {
        if (session.room() == 0) answer.ended = Ended::at_context;
        if (interrupted()) answer.ended = Ended::by_interrupt;
        if (answer.ended != Ended::at_limit) break;
        const Token token = session.next();
        answer.tokens.push_back(token);
        if (model.is_end(token)) {
            answer.ended = Ended::by_model;
            break;
        }
        write(stops.push(detokenizer.push(token)));
        if (stops.stopped()) {
            answer.ended = Ended::at_stop;
            return answer;
        }
    }
    write(stops.push(detokenizer.finish()));
    write(stops.finish());
    return answer;
}

}  // namespace tessera
