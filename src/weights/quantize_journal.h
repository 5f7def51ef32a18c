// Which shards of a folder that is being written are finished, so that a run that was killed goes
// on where it stopped. A file of JSON lines inside that folder: the job, then a line a shard.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "base/json.h"

namespace tessera {

class QuantizeJournal {
  public:
    // Opens the journal of `folder`, or begins one for `job`. Throws Error: another process is
    // writing here, or what was begun here is another job.
    QuantizeJournal(const std::filesystem::path& folder, const Json& job);
    ~QuantizeJournal();
    QuantizeJournal(const QuantizeJournal&) = delete;
    QuantizeJournal& operator=(const QuantizeJournal&) = delete;

    // Whether `shard` was finished and still has its size.
    bool is_finished(const std::string& shard) const;

    // `shard` is on the disk, whole and checked. Returns once the journal is on the disk too.
    void finished(const std::string& shard, uint64_t bytes);

    // The job is done: the journal goes.
    void remove();

  private:
    void append(const Json& line);

    std::filesystem::path folder_, file_;
    int descriptor_ = -1;  // locked as long as it is open
    std::map<std::string, uint64_t> bytes_of_;
};

}  // namespace tessera
