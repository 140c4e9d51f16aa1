// The container: what is accepted, and every way in which a header can lie.
#include "runtime/checkpoint/gguf.h"

#include <catch2/catch.hpp>

#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"
#include "tests/runtime/checkpoint/gguf_writer.h"

namespace shoal {
namespace {

using test::GgufWriter;
using test::TempDir;

GgufHeader parse(const std::string& bytes) {
  return parse_gguf_header(
      [&](uint64_t begin, uint64_t end, void* out) {
        REQUIRE(begin <= end);
        REQUIRE(end <= bytes.size());
        std::memcpy(out, bytes.data() + begin, end - begin);
      },
      bytes.size(), "x.gguf");
}

TEST_CASE("GGUF keys of every type, and tensors where their offsets say") {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter writer;
    writer.version = version;
    writer.raw_key("u8", 0, "\xff").raw_key("i8", 1, "\xff").raw_key("u16", 2, "\xff\xff");
    writer.raw_key("i16", 3, "\xff\xff").u32("u32", 4000000000u).i32("i32", -5).f32("f32", 1e-6f);
    writer.flag("yes", true).text("text", "two words").u64("u64", uint64_t{1} << 40);
    writer.u64("huge", ~uint64_t{0}).raw_key("i64", 11, GgufWriter::number<int64_t>(-7));
    writer.raw_key("f64", 12, GgufWriter::number(0.25)).texts("texts", {"a", "", "c"});
    writer.i32s("numbers", {-1, 0, 70000});
    writer.f32_tensor("a", {3, 2}, {1, 2, 3, 4, 5, 6}).f32_tensor("b", {1}, {7});
    writer.tensor("q", {64, 2, 3}, 8, std::string(2 * 34 * 2 * 3, 'x'));
    const std::string bytes = writer.bytes();
    const GgufHeader header = parse(bytes);
    const GgufMetadata& m = header.metadata;
    CHECK(m.integer("u8") == 255);
    CHECK(m.integer("i8") == -1);
    CHECK(m.integer("u16") == 65535);
    CHECK(m.integer("i16") == -1);
    CHECK(m.integer("u32") == 4000000000);
    CHECK(m.integer("i32") == -5);
    CHECK(m.integer("i64") == -7);
    CHECK(m.integer("u64") == int64_t{1} << 40);
    CHECK(m.number("huge") == 18446744073709551615.0);
    CHECK(m.number("f32") == 1e-6);  // and not float's 9.99999997e-07
    CHECK(m.number("f64") == 0.25);
    CHECK(m.number("u8") == 255);
    CHECK(m.flag("yes") == true);
    CHECK(*m.text("text") == "two words");
    CHECK(*m.strings("texts") == std::vector<std::string>{"a", "", "c"});
    CHECK(m.integers("numbers")->integer(0) == -1);
    CHECK(m.integers("numbers")->integer(2) == 70000);
    CHECK(m.text("absent") == nullptr);
    CHECK_FALSE(m.integer("absent"));
    INVALID(m.integer("text"), "x.gguf", "\"text\"", "two words", "should be an integer");
    INVALID(m.text("u8"), "\"u8\" is 255", "should be a string");
    INVALID(m.flag("u8"), "boolean");
    INVALID(m.strings("numbers"), "an array of 3", "strings");
    INVALID(m.integers("texts"), "array of integers");

    REQUIRE(header.tensors.size() == 3);
    const GgufTensor& a = header.tensors.at("a");
    CHECK(a.shape == std::vector<int64_t>{2, 3});
    CHECK(a.end - a.begin == 24);
    float first = 0;
    std::memcpy(&first, bytes.data() + a.begin, 4);
    CHECK(first == 1);
    CHECK(header.tensors.at("q").shape_string() == "Q8_0[3, 2, 64]");
    CHECK(header.tensors.at("q").num_elements() == 384);
  }
}

TEST_CASE("GGUF files that are something else") {
  INVALID(parse("GGUF"), "x.gguf", "4 bytes are too few");
  INVALID(parse(std::string(40, 'x')), "begins with \"xxxx\"", "\"GGUF\"");
  INVALID(parse("version https://git-lfs.github.com/spec/v1"), "Git LFS");
  GgufWriter writer;
  writer.version = 1;
  INVALID(parse(writer.bytes()), "version 1", "2 and 3");
  writer.version = 0x03000000;
  INVALID(parse(writer.bytes()), "big-endian");
}

TEST_CASE("GGUF counts and lengths that lie") {
  const auto head = [](uint64_t tensors, uint64_t keys) {
    return "GGUF" + GgufWriter::number<uint32_t>(3) + GgufWriter::number(tensors) +
           GgufWriter::number(keys);
  };
  INVALID(parse(head(0, ~uint64_t{0})), "18446744073709551615 keys do not fit");
  INVALID(parse(head(uint64_t{1} << 60, 0)), "tensors do not fit");
  // A key's name, its value, an array, and its strings, each longer than the file.
  INVALID(parse(head(0, 1) + GgufWriter::number(~uint64_t{0}) + std::string(20, 'k')), "key 0",
          "length of 18446744073709551615");
  INVALID(parse(head(0, 1) + GgufWriter::number<uint64_t>(1000) + std::string(20, 'k')), "key 0",
          "only 20 bytes are left");
  const auto with = [](uint32_t type, const std::string& value) {
    return GgufWriter().raw_key("k", type, value).bytes();
  };
  INVALID(parse(with(8, GgufWriter::number(uint64_t{1} << 62))), "key \"k\"", "length of");
  INVALID(parse(with(8, GgufWriter::number<uint64_t>(5000))), "key \"k\"", "bytes are left");
  INVALID(parse(with(13, "....")), "key \"k\"", "type 13");
  INVALID(parse(with(7, "\x02")), "key \"k\"", "boolean of 2");
  const std::string u64_type = GgufWriter::number<uint32_t>(10);
  INVALID(parse(with(9, u64_type + GgufWriter::number(uint64_t{1} << 61))),
          "array of 2305843009213");
  INVALID(parse(with(9, GgufWriter::number<uint32_t>(8) + GgufWriter::number<uint64_t>(1000))),
          "array of 1000");
  INVALID(parse(with(9, GgufWriter::number<uint32_t>(9) + GgufWriter::number<uint64_t>(1))),
          "array of arrays");
  INVALID(parse(with(9, GgufWriter::number<uint32_t>(77) + GgufWriter::number<uint64_t>(1))),
          "type 77");
  INVALID(parse(GgufWriter().u32("k", 1).u32("k", 1).bytes()), "key \"k\" is there twice");
  INVALID(parse(GgufWriter().u32("", 1).bytes()), "key 0 is an empty string");
  // Every beginning of a good file is refused.
  const std::string good = GgufWriter()
                               .text("k", "v")
                               .i32s("a", {1, 2})
                               .f32_tensor("t", {9}, std::vector<float>(9))
                               .bytes();
  CHECK(parse(good).tensors.size() == 1);
  for (size_t size = 0; size < good.size(); ++size) {
    INFO(size);
    CHECK_THROWS_AS(parse(good.substr(0, size)), InvalidInput);
  }
}

TEST_CASE("GGUF alignments") {
  for (const uint32_t value : {0u, 1u, 24u, 4194304u}) {
    INVALID(parse(GgufWriter().u32("general.alignment", value).bytes()), "general.alignment",
            std::to_string(value), "power of two");
  }
  INVALID(parse(GgufWriter().text("general.alignment", "32").bytes()), "should be an integer");
  GgufWriter writer;
  writer.alignment = 64;
  writer.u32("general.alignment", 64).f32_tensor("a", {1}, {1}).f32_tensor("b", {1}, {2});
  CHECK(parse(writer.bytes()).tensors.at("b").begin % 64 == 0);
  GgufWriter off;
  off.alignment = 16;
  off.f32_tensor("a", {1}, {1}).f32_tensor("b", {1}, {2});
  INVALID(parse(off.bytes()), "tensor \"b\"", "offset 16", "multiple of 32");
}

TEST_CASE("GGUF tensors that lie") {
  const auto one = [](const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset = 0) {
    return GgufWriter().tensor_at("t", dims, type, offset).bytes() + std::string(64, '\0');
  };
  CHECK(parse(one({16}, 0)).tensors.size() == 1);
  INVALID(parse(one({17}, 0)), "tensor \"t\" of 68 bytes", "beyond the file");
  INVALID(parse(one({16}, 0, 32)), "tensor \"t\"", "offset 32");
  INVALID(parse(one({16}, 0, ~uint64_t{31})), "tensor \"t\"", "offset 18446744073709551584");
  INVALID(parse(one({}, 0)), "0 dimensions");
  INVALID(parse(one({1, 1, 1, 1, 1}, 0)), "5 dimensions");
  INVALID(parse(one({4, 0}, 0)), "dimension of 0");
  INVALID(parse(one({uint64_t{1} << 32, uint64_t{1} << 32}, 0)), "dimension of 4294967296");
  INVALID(parse(one({~uint64_t{0}, 3}, 0)), "dimension of 18446744073709551615");
  INVALID(parse(one({uint64_t{1} << 49}, 0)), "2^48");
  INVALID(parse(one({33}, 8)), "Q8_0[33]", "whole blocks of 32");
  INVALID(parse(one({128}, 12)), "Q4_K[128]", "whole blocks of 256");
  INVALID(parse(one({256}, 17)), "tensor \"t\" has the type IQ2_XS", "Shoal reads F32");
  INVALID(parse(one({32}, 39)), "the type MXFP4");
  INVALID(parse(one({32}, 4)), "the type Q4_2");
  INVALID(parse(one({32}, 99)), "the type number 99");
  INVALID(parse(GgufWriter().f32_tensor("t", {1}, {1}).f32_tensor("t", {1}, {1}).bytes()),
          "tensor \"t\" is there twice");
  INVALID(parse(GgufWriter()
                    .f32_tensor("a", {9}, std::vector<float>(9))
                    .tensor_at("b", {1}, 0, 32)
                    .bytes()),
          "\"a\" and \"b\" overlap");
  INVALID(parse(GgufWriter().f32_tensor(std::string(65, 'n'), {1}, {1}).bytes()), "length of 65",
          "at most 64");
}

TEST_CASE("GGUF models of several files") {
  const TempDir dir;
  const auto part = [&](int number, int no, int count, int total,
                        const std::vector<std::string>& names) {
    GgufWriter writer;
    writer.i32("split.no", no).i32("split.count", count).i32("split.tensors.count", total);
    for (const std::string& name : names)
      writer.f32_tensor(name, {1}, {static_cast<float>(number)});
    dir.write(fmt::format("m-{:05}-of-00003.gguf", number), writer.bytes());
  };
  part(1, 0, 3, 3, {});  // as llama.cpp splits: the first may hold metadata only
  part(2, 1, 3, 3, {"a", "b"});
  part(3, 2, 3, 3, {"c"});
  const std::string first = dir.path("m-00001-of-00003.gguf");
  const auto model = GgufModel::open(first);
  CHECK(model->num_files() == 3);
  CHECK(model->tensors().size() == 3);
  CHECK(model->total_bytes() == 12);
  CHECK(model->find("c")->file->path() == dir.path("m-00003-of-00003.gguf"));
  CHECK(model->find("d") == nullptr);

  INVALID(GgufModel::open(dir.path("m-00002-of-00003.gguf")), "give the first",
          "-00001-of-00003.gguf");
  dir.write("other.gguf", GgufWriter().i32("split.no", 0).i32("split.count", 3).bytes());
  INVALID(GgufModel::open(dir.path("other.gguf")), "-00001-of-00003.gguf");
  dir.write("other.gguf", GgufWriter().i32("split.count", -1).bytes());
  INVALID(GgufModel::open(dir.path("other.gguf")), "split.count", "1 to 1024");
  dir.write("other.gguf", GgufWriter().bytes());
  INVALID(GgufModel::open(dir.path("other.gguf")), "holds no tensors");
  part(3, 1, 3, 3, {"c"});
  INVALID(GgufModel::open(first), "m-00003-of-00003.gguf", "split.no", "should be 2");
  part(3, 2, 4, 3, {"c"});
  INVALID(GgufModel::open(first), "split.count", "should be 3");
  part(3, 2, 3, 3, {"a"});
  INVALID(GgufModel::open(first), "m-00003", "tensor \"a\"", "m-00002", "holds too");
  part(3, 2, 3, 3, {"c", "d"});
  INVALID(GgufModel::open(first), "split.tensors.count", "is 3", "hold 4");
  std::filesystem::remove(dir.path("m-00003-of-00003.gguf"));
  INVALID(GgufModel::open(first), "m-00003-of-00003.gguf", "No such file");
}

TEST_CASE("which paths mean a GGUF file") {
  const TempDir dir;
  dir.write("blob", GgufWriter().bytes());
  dir.write("text", "{}");
  dir.write("x.gguf", "");
  std::filesystem::create_directories(dir.path("folder.gguf"));
  CHECK(is_gguf(dir.path("blob")));
  CHECK(is_gguf(dir.path("x.gguf")));
  CHECK_FALSE(is_gguf(dir.path("text")));
  CHECK_FALSE(is_gguf(dir.path("folder.gguf")));
  CHECK_FALSE(is_gguf(dir.path("none.gguf")));
}

}  // namespace
}  // namespace shoal
