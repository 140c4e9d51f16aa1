// Who may begin, who is refused, and when they are told to come back: against a clock of the test's own.
#include "server/admission/admission.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <deque>
#include <random>

#include "google/rpc/error_details.pb.h"
#include "kernels/base/error.h"
#include "server/admission/error_details.h"

namespace shoal {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Desk {
  explicit Desk(AdmissionOptions options) {
    options.now = [this] { return now; };
    admission = std::make_shared<Admission>(options);
  }
  // A call that is refused; what it is told.
  CallStatus refused(const Admission::Ask& ask) {
    try {
      admission->admit(ask);
    } catch (const CallRefused& refusal) {
      return refusal.status();
    }
    FAIL("was admitted");
    return {};
  }
  // Sequences that run and end, one each `gap`, while the queue stays full.
  void finish(int count, milliseconds gap) {
    for (int i = 0; i < count; ++i) {
      now += gap;
      held.front().ended(0);
      held.erase(held.begin());
      fill(1);
    }
  }
  void fill(int count) {
    for (int i = 0; i < count; ++i) held.push_back(admission->admit(ask()));
  }
  static Admission::Ask ask(uint64_t client = 0) {
    Client c;
    c.id = client;
    return {.client = std::make_shared<Client>(c), .prompt_tokens = 100};
  }

  std::chrono::steady_clock::time_point now{seconds(1000)};
  std::shared_ptr<Admission> admission;
  std::deque<Admission::Ticket> held;
};

TEST_CASE("a full queue refuses at once, and says when places come free") {
  Desk desk({.max_sequences = 20, .max_running = 4});
  desk.fill(20);
  CallStatus status = desk.refused(desk.ask());
  CHECK(status.code == CallCode::kResourceExhausted);
  CHECK(status.refusal == Refusal::kQueueFull);
  CHECK(status.retry_after == milliseconds(1000));  // nothing is known yet
  CHECK(status.message ==
        "the queue is full: 20 sequences are alive, this call asks for 1 more, --max-queue is 20; try again "
        "in 1.0 s");

  desk.finish(40, milliseconds(250));  // four a second
  CHECK(desk.refused(desk.ask()).retry_after->count() == Approx(250).margin(2));
  // Each place is promised once, whoever asks.
  CHECK(desk.refused(desk.ask(7)).retry_after->count() == Approx(500).margin(2));
  Admission::Ask three = desk.ask();
  three.n = 3;
  CHECK(desk.refused(three).retry_after->count() == Approx(1250).margin(3));
  for (int i = 0; i < 1000; ++i) CHECK(*desk.refused(desk.ask()).retry_after <= seconds(60));
  CHECK(desk.refused(desk.ask()).retry_after == seconds(60));
  // Promises end when their time has passed.
  desk.finish(300, milliseconds(250));
  CHECK(desk.refused(desk.ask()).retry_after->count() == Approx(250).margin(2));

  // Nothing finishes any more: longer and longer, a minute at most. All at once: not less than 100 ms.
  desk.now += seconds(30);
  const milliseconds slow = *desk.refused(desk.ask()).retry_after;
  CHECK(slow > milliseconds(900));
  desk.now += seconds(600);
  CHECK(desk.refused(desk.ask()).retry_after == seconds(60));
  desk.now += seconds(61);
  desk.finish(30'000, milliseconds(1));
  CHECK(desk.refused(desk.ask()).retry_after == milliseconds(100));
}

TEST_CASE("what can never be admitted is a wrong request") {
  Desk desk({.max_sequences = 8});
  Admission::Ask ask = desk.ask();
  ask.n = 9;
  CHECK_THROWS_AS(desk.admission->admit(ask), InvalidInput);
  Client few;
  few.max_sequences = 3;
  ask.client = std::make_shared<Client>(few);
  ask.n = 4;
  CHECK_THROWS_AS(desk.admission->admit(ask), InvalidInput);
  CHECK(desk.admission->idle());
}

TEST_CASE("a client has its own limit of sequences, and others are not touched by it") {
  Desk desk({.max_sequences = 100});
  Client limited;
  limited.id = 5;
  limited.max_sequences = 4;
  Admission::Ask ask{.client = std::make_shared<Client>(limited), .n = 2};
  std::vector<Admission::Ticket> tickets;
  tickets.push_back(desk.admission->admit(ask));
  tickets.push_back(desk.admission->admit(ask));
  const CallStatus status = desk.refused(ask);
  CHECK(status.code == CallCode::kResourceExhausted);
  CHECK(status.refusal == Refusal::kClientSequences);
  CHECK(status.retry_after.has_value());
  desk.admission->admit(desk.ask(6));
  tickets[0].ended(0);
  desk.refused(ask);
  tickets[1].started(1);
  tickets[1].ended(1);
  tickets.push_back(desk.admission->admit(ask));
  CHECK(desk.admission->sequences() == 4);
}

TEST_CASE("a client's rate: so many at once, then so many a second, with the exact time to wait") {
  Desk desk({.max_sequences = 1000});
  Client limited;
  limited.id = 5;
  limited.requests_per_second = 2;
  const bool burst = GENERATE(true, false);
  if (burst) limited.burst = 3;  // else one second's worth
  const Admission::Ask ask{.client = std::make_shared<Client>(limited)};
  for (int i = 0; i < (burst ? 3 : 2); ++i) desk.admission->admit(ask);
  for (int i = 0; i < 5; ++i) {  // asking costs nothing
    const CallStatus status = desk.refused(ask);
    CHECK(status.code == CallCode::kResourceExhausted);
    CHECK(status.refusal == Refusal::kClientRate);
    CHECK(status.retry_after == milliseconds(500));
  }
  desk.now += milliseconds(200);
  CHECK(desk.refused(ask).retry_after == milliseconds(300));
  desk.admission->admit(desk.ask(6));
  desk.now += milliseconds(300);
  desk.admission->admit(ask);
  CHECK(desk.refused(ask).retry_after == milliseconds(500));
  desk.now += seconds(3600);
  for (int i = 0; i < (burst ? 3 : 2); ++i) desk.admission->admit(ask);
  CHECK(desk.refused(ask).retry_after == milliseconds(500));
  // A new file of keys: the next question goes by it.
  limited.requests_per_second = 0.1;
  CHECK(desk.refused({.client = std::make_shared<Client>(limited)}).retry_after == seconds(10));
  desk.now += seconds(10);
  desk.admission->admit({.client = std::make_shared<Client>(limited)});
}

TEST_CASE("a call that the queue refuses does not use up its client's rate") {
  Desk desk({.max_sequences = 1});
  Client limited;
  limited.requests_per_second = 1;
  const Admission::Ask ask{.client = std::make_shared<Client>(limited)};
  {
    const Admission::Ticket other = desk.admission->admit(desk.ask(9));
    for (int i = 0; i < 3; ++i) CHECK(desk.refused(ask).refusal == Refusal::kQueueFull);
  }
  desk.admission->admit(ask);
  CHECK(desk.refused(ask).refusal == Refusal::kClientRate);
}

TEST_CASE("a deadline that the prompts ahead make impossible is refused, unless that is not known") {
  Desk desk({.max_sequences = 100, .max_running = 50});
  std::vector<Admission::Ticket> ahead;
  for (int i = 0; i < 11; ++i) ahead.push_back(desk.admission->admit(desk.ask()));
  Admission::Ask ask = desk.ask();
  ask.seconds_left = 0.5;
  ask.prompt_tokens = 1000;
  desk.admission->admit(ask);  // nothing measured
  // 10 prompts of 100 tokens (the first may be almost done) and 1,000 of its own: 2 s, so at best 1 s.
  ask.rates.prompt_token_seconds = 0.001;
  const CallStatus status = desk.refused(ask);
  CHECK(status.code == CallCode::kDeadlineExceeded);
  CHECK(status.refusal == Refusal::kDeadline);
  CHECK(status.message ==
        "the call's deadline is in 0.500 s, its first token could not come before 2.000 s: 1000 tokens of "
        "prompts are ahead of its 1000, and 0 sequences must end first");
  ask.seconds_left = 1.01;
  desk.admission->admit(ask);
  ask.seconds_left = 0.5;
  SECTION("a prefix cache that holds most of it") {
    ask.rates.hit_rate = 0.6;
    desk.admission->admit(ask);
  }
  SECTION("a better priority: what waits behind it does not count") {
    ask.priority = -1;
    ask.prompt_tokens = 500;
    desk.admission->admit(ask);
    ask.priority = 1;
    desk.refused(ask);
  }
  SECTION("another client may be next") {
    ask.client = desk.ask(3).client;
    ask.prompt_tokens = 500;
    desk.admission->admit(ask);
  }
  SECTION("prompts that are through do not count") {
    ask.prompt_tokens = 500;
    desk.refused(ask);
    for (auto& ticket : ahead) ticket.started(0);
    desk.admission->admit(ask);
    // But they run now: the first step takes as long as theirs.
    ask.rates.decode_step_seconds = 2;
    desk.refused(ask);
  }
  SECTION("a deadline that has passed") {
    ask.rates = {};
    ask.seconds_left = -0.001;
    CHECK(desk.refused(ask).message == "the call's deadline passed before it began");
  }
}

TEST_CASE("a deadline before a place comes free is refused, once the rate of that is known") {
  Desk desk({.max_sequences = 100, .max_running = 4});
  desk.fill(44);
  for (int i = 0; i < 4; ++i) desk.held[i].started(0);
  Admission::Ask ask = desk.ask();
  ask.seconds_left = 1;
  desk.admission->admit(ask);
  desk.finish(40, milliseconds(100));  // 10 a second, 44 alive: 4.1 s or more
  desk.refused(ask);
  ask.seconds_left = 2.3;
  desk.admission->admit(ask);
}

TEST_CASE("the estimate of the first token, in numbers") {
  FirstTokenInputs in{.prompt_tokens_ahead = 900, .own_prompt_tokens = 100};
  CHECK(least_seconds_to_first_token(in) == 0);
  CHECK_FALSE(cannot_make_it(in, 1e-9));
  CHECK(cannot_make_it(in, 0));
  in.prompt_token_seconds = 0.01;
  CHECK(least_seconds_to_first_token(in) == Approx(10));
  in.hit_rate = 0.75;
  CHECK(least_seconds_to_first_token(in) == Approx(2.5));
  in.decode_step_seconds = 0.5;
  CHECK(least_seconds_to_first_token(in) == Approx(2.5));
  in.running = true;
  CHECK(least_seconds_to_first_token(in) == Approx(3));
  in.finishes_needed = 10;
  CHECK(least_seconds_to_first_token(in) == Approx(3));
  in.finishes_per_second = 2;
  CHECK(least_seconds_to_first_token(in) == Approx(5.5));
  CHECK_FALSE(cannot_make_it(in, 2.76));
  CHECK(cannot_make_it(in, 2.74));
}

// Against a count of its own.
TEST_CASE("tickets give back what they hold, in whatever order") {
  std::mt19937_64 random(GENERATE(1, 2, 3));
  const auto pick = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  Desk desk({.max_sequences = 60, .max_running = 16});
  struct Held {
    Admission::Ticket ticket;
    std::vector<int> state;  // 0 waiting, 1 started, 2 ended
  };
  std::vector<Held> held;
  int64_t refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    desk.now += milliseconds(pick(0, 20));
    if (pick(0, 2) == 0) {
      Client client;
      client.id = static_cast<uint64_t>(pick(0, 4));
      client.max_sequences = client.id == 2 ? 10 : 0;
      client.requests_per_second = client.id == 3 ? 5 : 0;
      Admission::Ask ask{.client = std::make_shared<Client>(client),
                         .n = pick(1, 4),
                         .priority = pick(-2, 2),
                         .prompt_tokens = pick(1, 500)};
      if (pick(0, 1) == 0) ask.seconds_left = 0.1 * pick(0, 50);
      ask.rates = {0.001, 0.01, 0.1};
      try {
        held.push_back({desk.admission->admit(ask), std::vector<int>(ask.n)});
      } catch (const CallRefused&) {
        ++refused;
      }
    } else if (!held.empty()) {
      const size_t at = static_cast<size_t>(pick(0, static_cast<int>(held.size()) - 1));
      Held& one = held[at];
      const int sample = pick(0, static_cast<int>(one.state.size()) - 1);
      const int what = pick(0, 9);
      if (what == 0) {
        held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
      } else if (what < 5) {
        one.ticket.started(sample);
        one.state[sample] = std::max(one.state[sample], 1);
      } else {
        one.ticket.ended(sample);
        one.state[sample] = 2;
      }
    }
    int64_t alive = 0;
    for (const Held& one : held) alive += std::ranges::count_if(one.state, [](int s) { return s < 2; });
    REQUIRE(desk.admission->sequences() == alive);
    REQUIRE(alive <= 60);
  }
  CHECK(refused > 100);
  held.clear();
  CHECK(desk.admission->idle());
}

TEST_CASE("details of a refusal are google.rpc's") {
  CHECK(error_details({CallCode::kInvalidArgument, "n is 0"}).empty());
  google::rpc::Status status;
  REQUIRE(status.ParseFromString(error_details(
      {CallCode::kResourceExhausted, "full", Refusal::kQueueFull, milliseconds(2345)})));
  CHECK(status.code() == 8);
  CHECK(status.message() == "full");
  REQUIRE(status.details_size() == 2);
  google::rpc::RetryInfo retry;
  CHECK(status.details(0).type_url() == "type.googleapis.com/google.rpc.RetryInfo");
  REQUIRE(status.details(0).UnpackTo(&retry));
  CHECK(retry.retry_delay().seconds() == 2);
  CHECK(retry.retry_delay().nanos() == 345'000'000);
  google::rpc::ErrorInfo info;
  REQUIRE(status.details(1).UnpackTo(&info));
  CHECK(info.reason() == "QUEUE_FULL");
  CHECK(info.domain() == "shoal");
}

}  // namespace
}  // namespace shoal
