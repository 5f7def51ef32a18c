// What a measurement says and how it travels: a line of text from the process that measures to the
// one that reports, a row of the table, an object in JSON. Knows nothing of CUDA.
#pragma once

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace tessera::ground {

struct Spread {
    double median, low, high;
};

inline Spread spread(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back()};
}

// The value that a share of 0 to 1 of all values does not exceed.
inline double quantile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1))];
}

using Numbers = std::vector<std::pair<std::string, double>>;  // name with its unit last, value

struct Figure {
    std::string name;
    std::string unit;
    Spread value;
    Numbers more;
};

struct Fact {
    std::string name;
    std::string value;
};

// A measurement that has no figure, and why.
struct Failure {
    std::string name;
    std::string why;
};

struct Report {
    std::string group;
    std::vector<Fact> facts;
    std::vector<Figure> figures;
    std::vector<Failure> failures;
};

// ---- Lines between processes: a kind and fields, separated by tabs
// -------------------------------

inline std::string line_of(std::vector<std::string> fields) {
    std::string line;
    for (std::string& field : fields) {
        for (char& c : field) {
            if (c == '\t' || c == '\n') c = ' ';
        }
        line += (line.empty() ? "" : "\t") + field;
    }
    return line + "\n";
}

inline std::string number(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.6g", value);
    return text;
}

inline std::string line_of(const Figure& figure) {
    std::vector<std::string> fields = {"figure",
                                       figure.name,
                                       figure.unit,
                                       number(figure.value.median),
                                       number(figure.value.low),
                                       number(figure.value.high)};
    for (const auto& [name, value] : figure.more) {
        fields.push_back(name);
        fields.push_back(number(value));
    }
    return line_of(fields);
}

inline std::string line_of(const Fact& fact) {
    return line_of({"fact", fact.name, fact.value});
}
inline std::string line_of(const Failure& failure) {
    return line_of({"failure", failure.name, failure.why});
}

// Adds what a line says to the report; a line that says nothing is a failure too.
inline void add_line(Report& report, const std::string& line) {
    std::vector<std::string> fields;
    std::istringstream stream(line);
    for (std::string field; std::getline(stream, field, '\t');) fields.push_back(field);
    if (fields.size() >= 6 && fields[0] == "figure") {
        Figure figure = {fields[1],
                         fields[2],
                         {std::stod(fields[3]), std::stod(fields[4]), std::stod(fields[5])},
                         {}};
        for (size_t i = 6; i + 1 < fields.size(); i += 2) {
            figure.more.emplace_back(fields[i], std::stod(fields[i + 1]));
        }
        report.figures.push_back(figure);
    } else if (fields.size() == 3 && fields[0] == "fact") {
        report.facts.push_back({fields[1], fields[2]});
    } else if (fields.size() == 3 && fields[0] == "failure") {
        report.failures.push_back({fields[1], fields[2]});
    } else {
        report.failures.push_back({"report", "not a line of a report: " + line});
    }
}

// ---- For people ------------------------------------------------------------------------------

inline void print_table(const Report& report) {
    std::printf("\n%s\n", report.group.c_str());
    for (const Fact& fact : report.facts) {
        std::printf("  %-60s %s\n", fact.name.c_str(), fact.value.c_str());
    }
    for (const Figure& figure : report.figures) {
        std::printf("  %-60s %9.5g %-5s (%.5g to %.5g)", figure.name.c_str(), figure.value.median,
                    figure.unit.c_str(), figure.value.low, figure.value.high);
        for (const auto& [name, value] : figure.more) {
            std::printf("  %s %.4g", name.c_str(), value);
        }
        std::printf("\n");
    }
    for (const Failure& failure : report.failures) {
        std::printf("  %-60s FAILED: %s\n", failure.name.c_str(), failure.why.c_str());
    }
    std::fflush(stdout);
}

// ---- For programs ----------------------------------------------------------------------------

inline std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += static_cast<unsigned char>(c) < ' ' ? ' ' : c;
    }
    return out + "\"";
}

// "[" one, two "]", each on a line of its own.
template <class Items, class Text>
std::string listed(const Items& items, Text text) {
    std::string out;
    for (const auto& item : items) out += (out.empty() ? "\n      " : ",\n      ") + text(item);
    return "[" + out + "]";
}

inline std::string json_of(const Figure& figure) {
    std::string more;
    for (const auto& [name, value] : figure.more) {
        more += (more.empty() ? "" : ", ") + quoted(name) + ": " + number(value);
    }
    return "{\"name\": " + quoted(figure.name) + ", \"unit\": " + quoted(figure.unit) +
           ", \"median\": " + number(figure.value.median) +
           ", \"low\": " + number(figure.value.low) + ", \"high\": " + number(figure.value.high) +
           ", \"more\": {" + more + "}}";
}

inline std::string json_of(const Report& report) {
    const auto pair = [](const std::string& name, const std::string& text) {
        return "{\"name\": " + quoted(name) + ", \"value\": " + quoted(text) + "}";
    };
    return "    {\"group\": " + quoted(report.group) + ",\n     \"facts\": " +
           listed(report.facts, [&](const Fact& fact) { return pair(fact.name, fact.value); }) +
           ",\n     \"figures\": " +
           listed(report.figures, [](const Figure& figure) { return json_of(figure); }) +
           ",\n     \"failures\": " +
           listed(report.failures, [&](const Failure& f) { return pair(f.name, f.why); }) + "}";
}

}  // namespace tessera::ground
