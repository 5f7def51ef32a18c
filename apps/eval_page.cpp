// The page of `tessera eval`: one static file. Everything that came from a model or a text is
// escaped.
#include <algorithm>
#include <cmath>
#include <fstream>

#include <fmt/format.h>

#include "base/error.h"

#include "eval_report.h"

namespace tessera {
namespace {

std::string escaped(std::string_view text) {
    std::string out;
    for (const char c : text) {
        switch (c) {
            case '&':
                out += "&amp;";
                break;
            case '<':
                out += "&lt;";
                break;
            case '>':
                out += "&gt;";
                break;
            case '"':
                out += "&quot;";
                break;
            case '\'':
                out += "&#39;";
                break;
            default:  // a control byte is no character of HTML
                out += static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t' ? ' ' : c;
        }
    }
    return out;
}

// Spaces and line ends as marks: a token that is one of them must be seen.
std::string visible(std::string_view text) {
    std::string out;
    for (const char c : text) {
        if (c == '\n') {
            out += "↵";
        } else if (c == '\t') {
            out += "⇥";
        } else if (c == ' ') {
            out += "·";
        } else {
            out += c;
        }
    }
    return escaped(out);
}

constexpr const char* kStyle = R"(
:root{color-scheme:light dark;--ink:#1d2329;--paper:#fff;--line:#d8dce1;--soft:#f3f5f7;--a:#1b6ca8;--b:#c8553d;--c:#3d8b5f}
@media (prefers-color-scheme:dark){:root{--ink:#dde1e6;--paper:#161b22;--line:#3a424c;--soft:#1f262e}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}blockquote{margin:1rem 0;padding:.7rem 1rem;background:var(--soft);border-left:4px solid var(--a)}
.wide{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}.words td{text-align:left;vertical-align:top}pre{margin:0;white-space:pre-wrap;font:13px/1.4 ui-monospace,monospace}
mark{background:var(--b);color:#fff;padding:0 .15em}svg text{fill:var(--ink);font:12px system-ui,sans-serif}.note{color:#7a828c;font-size:.9rem}
)";

std::string summary_table(const EvalReport& report) {
    std::string rows = "<tr><th>texts<th>tokens<th>bits/byte<th>perplexity";
    if (report.compares())
        rows += "<th>of the other<th>cost<th>95 % CI<th>mean KL<th>top-1 equal<th>largest gap";
    for (const TextsFound& found : report.texts) {
        Sums sums;
        for (const Sums& run : found.runs) sums += run;
        rows += fmt::format("<tr><td>{}<td>{:.0f}<td>{:.4f}<td>{:.4f}", escaped(found.name),
                            sums.tokens, sums.bits_per_byte(), sums.perplexity());
        if (!report.compares()) continue;
        const Interval cost = bootstrap(found.runs, &Sums::cost);
        rows += fmt::format("<td>{:.4f}<td>{:.3f} %<td>{}<td>{:.2e}<td>{:.2f} %<td>{:.3f}",
                            std::exp(sums.standard / sums.tokens), 100 * cost.value,
                            std::isnan(cost.low)
                                ? "-"
                                : fmt::format("{:.3f} to {:.3f}", 100 * cost.low, 100 * cost.high),
                            sums.mean_kl(), 100 * sums.agreement(), found.gap);
    }
    return "<div class=wide><table>" + rows + "</table></div>";
}

// Median, 90th and 99th percentile of KL by place, on a logarithmic axis.
std::string place_chart(const std::vector<PlaceKl>& places, uint32_t window) {
    constexpr double kWidth = 720, kHeight = 300, kLeft = 70, kRight = 90, kTop = 16, kBottom = 40;
    constexpr double kLeast = 1e-9;  // what is below is drawn there
    double low = 1e9, high = kLeast;
    for (const PlaceKl& p : places) {
        low = std::min(low, std::max(p.median, kLeast));
        high = std::max({high, p.p99, p.median});
    }
    if (places.empty()) return "";
    const double bottom = std::floor(std::log10(low));
    const double top = std::max(bottom + 1, std::ceil(std::log10(high)));
    const auto at_x = [&](double x) { return kLeft + x / window * (kWidth - kLeft - kRight); };
    const auto at_y = [&](double kl) {
        return kHeight - kBottom -
               (std::log10(std::max(kl, kLeast)) - bottom) / (top - bottom) *
                   (kHeight - kTop - kBottom);
    };
    std::string svg = fmt::format(
        R"(<svg viewBox="0 0 {} {}" role="img" aria-label="KL by place in the window">)", kWidth,
        kHeight);
    for (double power = bottom; power <= top; ++power) {
        const double y = at_y(std::pow(10, power));
        svg += fmt::format(
            R"-(<line x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}" stroke="var(--line)"/>)-"
            R"(<text x="{3}" y="{4:.1f}" text-anchor="end">1e{5:.0f}</text>)",
            kLeft, kWidth - kRight, y, kLeft - 8, y + 4, power);
    }
    struct Line {
        const char *name, *color;
        double PlaceKl::*value;
    };
    for (const Line& line :
         {Line{"median", "var(--c)", &PlaceKl::median}, Line{"90 %", "var(--a)", &PlaceKl::p90},
          Line{"99 %", "var(--b)", &PlaceKl::p99}}) {
        std::string points;
        for (size_t i = 0; i < places.size(); ++i) {
            const double end = i + 1 < places.size() ? places[i + 1].begin : window;
            points += fmt::format("{:.1f},{:.1f} ", at_x((places[i].begin + end) / 2),
                                  at_y(places[i].*line.value));
        }
        svg += fmt::format(R"(<polyline points="{}" fill="none" stroke="{}" stroke-width="2"/>)"
                           R"(<text x="{}" y="{:.1f}">{}</text>)",
                           points, line.color, kWidth - kRight + 8,
                           at_y(places.back().*line.value) + 4, line.name);
    }
    for (const PlaceKl& p : places)
        svg += fmt::format(R"(<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>)",
                           at_x(p.begin), kHeight - kBottom + 16, p.begin);
    return svg +
           fmt::format(
               R"(<text x="{:.0f}" y="{}" text-anchor="middle">token in the window</text></svg>)",
               (kLeft + kWidth - kRight) / 2, kHeight - 6);
}

// How many tokens have a KL of which size: a bar a decade and half.
std::string histogram(const TextsFound& found) {
    constexpr int kLow = -16, kHigh = 4;  // halves of a decade: 1e-8 to 100
    std::vector<uint64_t> counts(kHigh - kLow);
    for (const float kl : found.kl) {
        const double half = std::floor(2 * std::log10(std::max(double{kl}, 1e-8)));
        ++counts[static_cast<size_t>(std::clamp(half - kLow, 0.0, double{kHigh - kLow - 1}))];
    }
    const double most = static_cast<double>(*std::max_element(counts.begin(), counts.end()));
    constexpr double kBar = 30, kHeight = 220, kBase = 180;
    std::string svg =
        fmt::format(R"(<svg viewBox="0 0 {} {}" role="img" aria-label="tokens by KL">)",
                    kBar * (kHigh - kLow) + 60, kHeight);
    for (int i = 0; i < kHigh - kLow; ++i) {
        const double height = 150 * static_cast<double>(counts[static_cast<size_t>(i)]) / most;
        svg += fmt::format(
            R"-(<rect x="{:.0f}" y="{:.1f}" width="{}" height="{:.1f}" fill="var(--a)"><title>{} tokens</title></rect>)-",
            30 + kBar * i, kBase - height, kBar - 2, height, counts[static_cast<size_t>(i)]);
        if (i % 2 == 0)
            svg += fmt::format(R"(<text x="{:.0f}" y="{}" text-anchor="middle">1e{}</text>)",
                               30 + kBar * i, kBase + 18, (kLow + i) / 2);
    }
    return svg + "</svg>";
}

std::string worst_table(const EvalReport& report) {
    std::string rows = "<tr><th>KL<th>where<th>the text<th>the other says<th>this says";
    for (const WorstToken& w : report.worst)
        rows += fmt::format(
            "<tr><td>{:.3f}<td>{}<td><pre>{}<mark>{}</mark>{}</pre><td><code>{}</"
            "code><td><code>{}</code>",
            w.kl, escaped(w.where), escaped(w.before), visible(w.token), escaped(w.after),
            visible(w.standard_says), visible(w.candidate_says));
    return "<div class=wide><table class=words>" + rows + "</table></div>";
}

std::string tasks_table(const TasksFound& found) {
    std::string rows = "<tr><th>task<th>expected<th>answer<th>";
    for (const TaskFound& task : found.tasks)
        rows += fmt::format("<tr><td>{}<td><code>{}</code><td><code>{}</code><td>{}",
                            escaped(task.name), visible(task.expected), visible(task.answer),
                            task.right ? "right" : "wrong");
    return fmt::format("<h2>{}</h2><div class=wide><table class=words>{}</table></div>",
                       escaped(found.name), rows);
}

}  // namespace

void write_page(const EvalReport& report, const std::filesystem::path& file) {
    std::string page = fmt::format(
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content=\"width=device-width,initial-scale=1\">"
        "<title>{0}: what was measured</title><style>{1}</style>"
        "<h1>{0}{2}</h1><blockquote>{3}</blockquote>",
        escaped(report.model), kStyle,
        report.compares() ? " against " + escaped(report.against) : "", escaped(sentence(report)));
    if (!report.texts.empty()) page += summary_table(report);
    if (report.compares() && !report.texts.empty()) {
        const TextsFound& all = report.texts.back();
        page += "<h2>KL by place in the window</h2>" +
                place_chart(kl_by_place(all, report.window), report.window) +
                "<h2>Tokens by KL</h2>" + histogram(all) +
                "<h2>Where the two are furthest apart</h2>" + worst_table(report);
    }
    for (const TasksFound& found : report.tasks) page += tasks_table(found);
    page += fmt::format(
        "<p class=note>{}{}<br>{}. Windows of {} tokens, each read from an empty cache; KL in "
        "nats, "
        "of the other model's distribution to this one's; intervals: bootstrap over runs of "
        "neighbouring tokens, seeded.</p></html>\n",
        escaped(report.model_summary),
        report.compares() ? "<br>" + escaped(report.against_summary) : "", escaped(report.machine),
        report.window);
    std::ofstream stream(file, std::ios::binary);
    stream << page;
    if (!stream.flush()) fail("{}: cannot be written", file.string());
}

}  // namespace tessera
