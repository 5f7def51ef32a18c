#include "answer.h"

#include "text/stop.h"

#include "interrupt.h"

namespace tessera {

std::string_view answer_end_text(AnswerEnd ended) {
    switch (ended) {
        case AnswerEnd::by_model:
            return "the model ended it";
        case AnswerEnd::at_stop:
            return "ended at a stop string";
        case AnswerEnd::at_limit:
            return "ended at --max-tokens";
        case AnswerEnd::at_context:
            return "ended: the context is full";
        case AnswerEnd::by_interrupt:
            return "interrupted";
    }
    return "";
}

Answer stream_answer(const Model& model, Session& session, const AnswerLimits& limits,
                     const std::function<void(std::string_view)>& write) {
    Detokenizer detokenizer = model.detokenizer(limits.specials);
    StopFinder stops(limits.stops);
    Answer answer{AnswerEnd::at_limit, {}};
    while (answer.tokens.size() < limits.tokens_max) {
        if (session.room() == 0) answer.ended = AnswerEnd::at_context;
        if (interrupted()) answer.ended = AnswerEnd::by_interrupt;
        if (answer.ended != AnswerEnd::at_limit) break;
        const Token token = session.next();
        answer.tokens.push_back(token);
        if (model.is_end(token)) {
            answer.ended = AnswerEnd::by_model;
            break;
        }
        write(stops.push(detokenizer.push(token)));
        if (stops.stopped()) {
            answer.ended = AnswerEnd::at_stop;
            return answer;
        }
    }
    write(stops.push(detokenizer.finish()));
    write(stops.finish());
    return answer;
}

}  // namespace tessera
