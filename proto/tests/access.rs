//! The access side's relay against the model of its gateway and its local programs: random cases, and
//! those that once broke a promise.

use aiot_tunnel_models::access::{run, Action, Life, Operation};
use aiot_tunnel_models::{each_piece, Sequence};
use aiot_tunnel_proto::frame::Extensions;
use proptest::prelude::*;
use Operation::*;

const MUCH: usize = 1 << 20;

fn lives() -> impl Strategy<Value = Life> {
    let offers = [Extensions::ALL, Extensions::ALL, Extensions::NONE];
    let pieces = proptest::collection::vec(any::<[u8; 8]>(), 0..400);
    (proptest::sample::select(offers.to_vec()), pieces)
        .prop_map(|(offer, pieces)| Life { offer, operations: Sequence(each_piece(&pieces)) })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn an_access_side_keeps_its_promises_whatever_its_gateway_does(life in lives()) {
        run(&life);
    }
}

/// A life with all extensions, whose gateway does these things for the first program.
fn run_one(actions: &[Action]) {
    let mut operations = vec![Opens, Takes { length: MUCH }, Turn];
    for does in actions {
        operations.extend([Gateway { program: 0, does: *does }, Arrives { length: MUCH }, Turn]);
    }
    run(&Life { offer: Extensions::ALL, operations: Sequence(operations) });
}

const ACCEPTS: Action = Action::Accepts { extensions: Extensions::ALL, credit: 3 };

#[test]
fn a_session_whose_data_came_before_the_answer_is_not_opened_with_a_gap() {
    run_one(&[Action::Early { fields: 0 }, ACCEPTS, Action::Data { length: 9 }]);
}

#[test]
fn hostile_credit_cuts_its_session() {
    for which in 0..=8 {
        run_one(&[ACCEPTS, Action::Data { length: 9 }, Action::BadCredit { which }]);
        run_one(&[ACCEPTS, Action::Finish { length: 9 }, Action::BadCredit { which }]);
        let credit = 5 + 6 * which;
        run_one(&[Action::Accepts { extensions: Extensions::ALL, credit }]);
    }
    run_one(&[ACCEPTS, Action::OverCredit { excess: 0 }]);
    run_one(&[ACCEPTS, Action::Finish { length: 9 }, Action::DataAfterEnd]);
}
