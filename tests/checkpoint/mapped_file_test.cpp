#include "base/mapped_file.h"

#include <string_view>
#include <utility>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "checkpoint/refusal.h"
#include "checkpoint/scratch_folder.h"

namespace tessera {
namespace {

using test::refusal;
using testing::HasSubstr;

std::string_view text(const MappedFile& file) {
    return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, IsTheFile) {
    const test::ScratchFolder folder;
    MappedFile file(folder.write("a", "four"));
    EXPECT_EQ(text(file), "four");
    MappedFile moved(std::move(file));
    EXPECT_EQ(text(moved), "four");
    MappedFile other(folder.write("b", "five!"));
    other = std::move(moved);
    EXPECT_EQ(text(other), "four");
    EXPECT_TRUE(moved.bytes().empty());  // NOLINT: what a moved-from file holds is promised
}

TEST(MappedFile, EmptyFileIsAnEmptySpan) {
    const test::ScratchFolder folder;
    EXPECT_TRUE(MappedFile(folder.write("empty", "")).bytes().empty());
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
    const test::ScratchFolder folder;
    const auto open = [](const std::filesystem::path& path) {
        return refusal([&] { MappedFile{path}; });
    };
    EXPECT_THAT(open(folder.path() / "absent"), HasSubstr("No such file"));
    EXPECT_THAT(open(folder.path()), HasSubstr("a folder"));
    EXPECT_THAT(open("/dev/null"), HasSubstr("a device"));
    const std::filesystem::path pipe = folder.path() / "pipe";
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    EXPECT_THAT(open(pipe), HasSubstr("pipe"));  // and does not wait for a writer
}

}  // namespace
}  // namespace tessera
