// The loader's rules, one named case each, and files that are damaged at every byte.
#include "runtime/checkpoint/safetensors.h"

#include <sys/stat.h>

#include "tests/runtime/checkpoint/checkpoint_writer.h"
#include "tests/runtime/checkpoint/expect_invalid.h"

namespace shoal {
namespace {

using test::safetensors_file;
using test::TempDir;

auto parse(const std::string& header, uint64_t data_bytes) {
  return parse_safetensors_header(header, 8 + header.size() + data_bytes, "x.safetensors");
}

std::string entry(const std::string& name, const std::string& type, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + type + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

std::string one(const std::string& type, const std::string& shape, const std::string& offsets) {
  return "{" + entry("a", type, shape, offsets) + "}";
}

TEST_CASE("a well-formed header gives types, shapes and absolute offsets") {
  const std::string header =
      "{\"__metadata__\":{\"format\":\"pt\"}," + entry("b", "BF16", "[2,3]", "[8,20]") + "," +
      entry("a", "F32", "[2]", "[0,8]") + "," + entry("empty", "F32", "[0,7]", "[20,20]") + "," +
      entry("scalar", "U8", "[]", "[20,21]") + "}   ";
  const auto tensors = parse(header, 21);
  const uint64_t data = 8 + header.size();
  REQUIRE(tensors.size() == 4);
  CHECK(tensors.at("a").begin == data);
  CHECK(tensors.at("b").begin == data + 8);
  CHECK(tensors.at("b").end == data + 20);
  CHECK(tensors.at("b").shape == std::vector<int64_t>{2, 3});
  CHECK(tensors.at("b").dtype == DType::kBF16);
  CHECK(tensors.at("b").num_elements() == 6);
  CHECK(tensors.at("empty").num_elements() == 0);
  CHECK(tensors.at("scalar").num_elements() == 1);
}

TEST_CASE("all stored types are known, others are refused by name") {
  const std::vector<std::pair<std::string, int>> types = {{"F32", 4},     {"F16", 2}, {"BF16", 2},
                                                          {"F8_E4M3", 1}, {"I64", 8}, {"I32", 4},
                                                          {"I8", 1},      {"U8", 1}};
  for (const auto& [type, size] : types) {
    CHECK(
        parse(one(type, "[3]", fmt::format("[0,{}]", 3 * size)), 3 * size).at("a").num_elements() ==
        3);
  }
  for (const char* type : {"F64", "F8_E5M2", "BOOL", "f32", ""}) {
    INVALID(parse(one(type, "[1]", "[0,8]"), 8), "x.safetensors", "\"a\"",
            std::string("\"") + type + "\"");
  }
}

TEST_CASE("names and keys that appear twice are refused") {
  INVALID(
      parse("{" + entry("a", "U8", "[1]", "[0,1]") + "," + entry("a", "U8", "[1]", "[1,2]") + "}",
            2),
      "\"a\" twice");
  INVALID(
      parse("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
      "twice");
  INVALID(parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],\"data_offsets\":[0,1]}}", 1),
          "twice");
  INVALID(
      parse(
          "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"data_offsets\":[0,1]}}",
          1),
      "twice");
  INVALID(parse("{\"__metadata__\":{},\"__metadata__\":{}}", 0), "twice");
  INVALID(parse("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0), "\"k\"", "twice");
}

TEST_CASE("shapes whose product overflows are refused, also beside a zero") {
  INVALID(parse(one("F32", "[4294967296,4294967296]", "[0,0]"), 0), "overflows");
  INVALID(parse(one("F32", "[9223372036854775807]", "[0,0]"), 0), "overflows");
  INVALID(parse(one("U8", "[9223372036854775808]", "[0,0]"), 0), "overflows");
  INVALID(parse(one("U8", "[0,4294967296,4294967296]", "[0,0]"), 0), "overflows");
  INVALID(parse(one("U8", "[4294967296,4294967296,0]", "[0,0]"), 0), "overflows");
  INVALID(parse(one("U8", "[18446744073709551616]", "[0,0]"), 0), "not an integer");
}

TEST_CASE("sizes have to be what type and shape say") {
  INVALID(parse(one("F32", "[2]", "[0,7]"), 7), "7 bytes", "8");
  INVALID(parse(one("F32", "[0]", "[0,4]"), 4), "4 bytes", "0");
  INVALID(parse(one("F32", "[]", "[0,8]"), 8), "8 bytes", "4");
}

TEST_CASE("offsets have to lie inside the data") {
  INVALID(parse(one("U8", "[2]", "[0,2]"), 1), "[0, 2)", "1 bytes");
  INVALID(parse(one("U8", "[2]", "[3,1]"), 4), "[3, 1)");
  INVALID(parse(one("U8", "[1]", "[18446744073709551615,0]"), 4), "[18446744073709551615, 0)");
}

TEST_CASE("tensors that overlap, leave gaps or lie misaligned are refused") {
  INVALID(
      parse("{" + entry("a", "U8", "[4]", "[0,4]") + "," + entry("b", "U8", "[4]", "[3,7]") + "}",
            7),
      "\"a\"", "\"b\"", "overlap");
  INVALID(
      parse("{" + entry("a", "U8", "[4]", "[0,4]") + "," + entry("b", "U8", "[4]", "[0,4]") + "}",
            4),
      "overlap");
  INVALID(
      parse("{" + entry("a", "U8", "[4]", "[0,4]") + "," + entry("b", "U8", "[0]", "[2,2]") + "}",
            4),
      "overlap");
  INVALID(
      parse("{" + entry("a", "U8", "[4]", "[0,4]") + "," + entry("b", "U8", "[2]", "[6,8]") + "}",
            8),
      "2 bytes before", "\"b\"");
  INVALID(parse(one("U8", "[4]", "[0,4]"), 5), "1 bytes at the end");
  INVALID(parse("{}", 1), "1 bytes at the end");
  INVALID(
      parse("{" + entry("a", "U8", "[2]", "[0,2]") + "," + entry("b", "F32", "[1]", "[2,6]") + "}",
            6),
      "\"b\"", "misaligned", "multiple of 4");
}

TEST_CASE("what is not a header is refused") {
  for (const char* text : {"",
                           " {}",
                           "[]",
                           "null",
                           "{",
                           "{\"a\"",
                           "{}x",
                           "{}{}",
                           "{\"a\":1}",
                           "{\"a\":[]}",
                           "{\"a\":\"F32\"}",
                           "{\"a\":null}",
                           "{\"a\":true}",
                           "{\"a\":{}}",
                           "{\"a\":{\"dtype\":1}}",
                           "{\"__metadata__\":[]}",
                           "{\"__metadata__\":{\"a\":1}}",
                           "{\"__metadata__\":{\"a\":{}}}",
                           "{\"__metadata__\":\"x\"}",
                           "\xef\xbb\xbf{}",
                           "{\"\xff\":{}}"}) {
    INFO(text);
    INVALID(parse(text, 0), "x.safetensors");
  }
  INVALID(parse(one("U8", "[-1]", "[0,1]"), 1), "-1");
  INVALID(parse(one("U8", "[1.0]", "[0,1]"), 1), "not an integer");
  INVALID(parse(one("U8", "[\"1\"]", "[0,1]"), 1), "string");
  INVALID(parse(one("U8", "[[1]]", "[0,1]"), 1), "array");
  INVALID(parse(one("U8", "[{}]", "[0,1]"), 1), "object");
  INVALID(parse(one("U8", "[1]", "[0]"), 1), "1 data_offsets");
  INVALID(parse(one("U8", "[1]", "[0,1,1]"), 1), "3 data_offsets");
  INVALID(parse(one("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1), "more than 8");
  INVALID(parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1), "lacks", "data_offsets");
  INVALID(parse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"more\":1}}", 1),
          "more");
}

TEST_CASE("deep nesting is refused at once") {
  INVALID(parse("{\"a\":" + std::string(100000, '['), 0), "array");
  std::string objects = "{\"a\":";
  for (int i = 0; i < 100000; ++i) objects += "{\"a\":";
  INVALID(parse(objects, 0), "object");
}

TEST_CASE("errors show names without their raw bytes") {
  INVALID(parse("{" + entry("\\u001b[31m\\n\\u00e4", "F32", "[1]", "[0,1]") + "}", 1),
          "\\x1b[31m\\x0a\\xc3\\xa4");
  INVALID(parse("{" + entry(std::string(100000, 'n'), "F32", "[1]", "[0,1]") + "}", 1), "nnn...");
}

TEST_CASE("files: missing, empty, a folder, a FIFO, a Git LFS pointer, a huge header") {
  const TempDir dir;
  INVALID(SafetensorsFile::open(dir.path("no")), "no: No such file");
  dir.write("empty", "");
  INVALID(SafetensorsFile::open(dir.path("empty")), "0 bytes");
  INVALID(SafetensorsFile::open(dir.path()), "regular file");
  REQUIRE(mkfifo(dir.path("fifo").c_str(), 0600) == 0);
  INVALID(SafetensorsFile::open(dir.path("fifo")), "regular file");
  dir.write("lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  INVALID(SafetensorsFile::open(dir.path("lfs")), "Git LFS");
  dir.write("max", std::string(8, '\xff') + "{}");
  INVALID(SafetensorsFile::open(dir.path("max")), "18446744073709551615", "10");
  // A header longer than allowed, in a sparse file that could hold it.
  const uint64_t header = (100u << 20) + 1;
  std::string prefix;
  for (int i = 0; i < 8; ++i) prefix += static_cast<char>(header >> (8 * i));
  dir.write("long", prefix);
  std::filesystem::resize_file(dir.path("long"), header + 100);
  INVALID(SafetensorsFile::open(dir.path("long")), "104857600 allowed");
}

TEST_CASE("a file that shrinks after it was opened is an error, not a signal") {
  const TempDir dir;
  dir.write("m", safetensors_file({test::stored_f32("a", {4}, {1, 2, 3, 4})}));
  const auto file = SafetensorsFile::open(dir.path("m"));
  const TensorInfo& info = file->tensors().at("a");
  float values[4];
  file->read(info.begin, info.end, values);
  CHECK(values[3] == 4.0f);
  std::filesystem::resize_file(dir.path("m"), info.end - 4);
  INVALID(file->read(info.begin, info.end, values), "shrank");
}

std::string tiny_file() {
  return safetensors_file({test::stored_f32("a", {2, 3}, test::small_integers(6, 1)),
                           test::stored_bf16("b", {5}, test::small_integers(5, 2))});
}

TEST_CASE("a file cut at any byte is refused") {
  const TempDir dir;
  const std::string whole = tiny_file();
  dir.write("m", whole);
  REQUIRE_NOTHROW(SafetensorsFile::open(dir.path("m")));
  for (size_t length = 0; length < whole.size(); ++length) {
    dir.write("m", whole.substr(0, length));
    INVALID(SafetensorsFile::open(dir.path("m")), dir.path("m"));
  }
  dir.write("m", whole + "x");
  INVALID(SafetensorsFile::open(dir.path("m")), "1 bytes at the end");
}

TEST_CASE("a header with any bit flipped is refused or describes the same bytes otherwise") {
  const TempDir dir;
  const std::string whole = tiny_file();
  const size_t data_bytes = 6 * 4 + 5 * 2;
  int refused = 0, accepted = 0;
  for (size_t bit = 0; bit < (whole.size() - data_bytes) * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    dir.write("m", damaged);
    try {
      const auto file = SafetensorsFile::open(dir.path("m"));
      ++accepted;
      uint64_t total = 0;  // another name, type or shape, never another amount of data
      for (const auto& [name, info] : file->tensors()) {
        CHECK(info.end <= whole.size());
        total += info.num_bytes();
      }
      CHECK(total == data_bytes);
    } catch (const InvalidInput&) {
      ++refused;
    }
  }
  CHECK(refused > accepted);
}

}  // namespace
}  // namespace shoal
